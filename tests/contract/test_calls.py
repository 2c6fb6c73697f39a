"""Calls of several threads on one model: each is answered as if it were alone, nothing is left."""

from __future__ import annotations

import asyncio
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.testing import assert_close
from transformers.generation.streamers import BaseStreamer

from families.inside import hooks_on
from families.registry import ready
from families.tiny import build
from tokensieve.errors import ConfigError
from tokensieve.hf.attention import tap
from tokensieve.hf.runtime import hooks
from tokensieve.hf.sieve import sieve
from toys.quick import few

THREADS, REQUESTS, NEW = 4, 6, 4
LLM = {"fastv": {"layer": 2}, "pyramiddrop": {}}
# every signal and every place to cut: features, embeds, attention in encoder and LLM, both insides
METHODS = ("tome", "fastv", "selector", "divprune", "fastervlm", "pyramiddrop")


@pytest.fixture(autouse=True)
def _often():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def tiny():
    return build("llava")


def state(model):
    """What a sieve might leave on a model."""
    attributes = [sorted(module.__dict__) for module in model.modules()]
    configs = [id(getattr(module, "config", None)) for module in model.modules()]
    return hooks_on(model), attributes, configs


def requests(tiny):
    """Prompts of different numbers of pictures and of text."""
    return [
        tiny.inputs([1 + i % 2] * (1 + i % 3), text=(3 + i % 4, 5 + i % 3)) for i in range(REQUESTS)
    ]


def told(model, inputs, **options):
    out = model.generate(
        **inputs, max_new_tokens=NEW, do_sample=False, output_logits=True,
        return_dict_in_generate=True, **options,
    )  # fmt: skip
    return out.sequences, torch.stack(out.logits, 1)


class Heard(BaseStreamer):
    """A streamer that keeps what it is put."""

    def __init__(self):
        self.chunks = []

    def put(self, value):
        self.chunks.append(value.tolist())

    def end(self):
        self.chunks.append("end")


def streamed(model, inputs):
    streamer = Heard()
    one = {
        name: value[:1] if name in ("input_ids", "attention_mask") else value
        for name, value in inputs.items()
    }
    one["pixel_values"] = one["pixel_values"][: inputs["pictures"]]
    one.pop("pictures")
    out = model.generate(**one, max_new_tokens=NEW, do_sample=False, streamer=streamer)
    return out, streamer.chunks


def in_threads(call, prompts):
    """Every prompt in every thread, each in an order of its own; answers by thread."""

    def work(number):
        order = [(i + number * 5) % len(prompts) for i in range(len(prompts))]
        return {i: call(prompts[i]) for i in order}

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, range(THREADS)))


@pytest.mark.parametrize("method", few(METHODS, 2))
def test_many_threads_are_answered_as_alone(tiny, method):
    prompts, before = requests(tiny), state(tiny.model)
    chosen = ready(method, tiny.model)
    with sieve(tiny.model, chosen, 0.4, **LLM.get(method, {})) as report:
        wanted = [told(tiny.model, prompt) for prompt in prompts]
        for answers in in_threads(lambda prompt: told(tiny.model, prompt), prompts):
            for i, (ids, logits) in answers.items():
                assert torch.equal(ids, wanted[i][0])
                assert_close(logits, wanted[i][1], rtol=0, atol=0)
    kept = [call.kept_tokens for call in report.calls[: len(prompts)]]
    assert len(report.calls) == (THREADS + 1) * REQUESTS
    assert report.kept_tokens == (THREADS + 1) * sum(kept)
    assert state(tiny.model) == before
    assert not hooks._MOUNTS
    assert not tap._TAPS


def test_beams_in_many_threads(tiny):
    prompts = requests(tiny)
    with sieve(tiny.model, "divprune", 0.4):
        wanted = [told(tiny.model, prompt, num_beams=3)[0] for prompt in prompts]
        for answers in in_threads(lambda p: told(tiny.model, p, num_beams=3)[0], prompts):
            assert all(torch.equal(ids, wanted[i]) for i, ids in answers.items())


def test_streaming_in_many_threads(tiny):
    prompts = []
    for i in range(REQUESTS):
        pictures = 1 + i % 2
        prompts.append({**tiny.inputs([pictures], text=(3 + i % 4,)), "pictures": pictures})
    with sieve(tiny.model, "divprune", 0.4):
        wanted = [streamed(tiny.model, prompt) for prompt in prompts]
        for answers in in_threads(lambda prompt: streamed(tiny.model, prompt), prompts):
            for i, (ids, chunks) in answers.items():
                assert torch.equal(ids, wanted[i][0])
                assert chunks == wanted[i][1]
                assert chunks[0] == prompts[i]["input_ids"].tolist()  # the prompt as given


@pytest.mark.parametrize("method", few(METHODS, 2))
def test_forwards_in_many_threads(tiny, method):
    prompts = requests(tiny)
    with sieve(tiny.model, ready(method, tiny.model), 0.4, **LLM.get(method, {})), torch.no_grad():

        def call(prompt):
            with torch.no_grad():
                return tiny.model(**prompt).logits

        wanted = [call(prompt) for prompt in prompts]
        for answers in in_threads(call, prompts):
            for i, logits in answers.items():
                assert_close(logits, wanted[i], rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_request_between_anothers_encoding_and_its_prefill(tiny, method, monkeypatch):
    first, second = tiny.inputs([2]), tiny.inputs([1], text=(7,))
    between = []
    right = tiny.model._prepare_cache_for_generation

    def interrupted(*args, **kwargs):
        if not between:
            between.append(None)
            with ThreadPoolExecutor(1) as pool:
                between[0] = pool.submit(told, tiny.model, second).result()
        return right(*args, **kwargs)

    with sieve(tiny.model, ready(method, tiny.model), 0.4, **LLM.get(method, {})):
        wanted = told(tiny.model, first), told(tiny.model, second)
        monkeypatch.setattr(tiny.model, "_prepare_cache_for_generation", interrupted)
        got = told(tiny.model, first), between[0]
    for (ids, logits), (wanted_ids, wanted_logits) in zip(got, wanted, strict=True):
        assert torch.equal(ids, wanted_ids)
        assert_close(logits, wanted_logits, rtol=0, atol=0)


class Gone(BaseStreamer):
    """A client that hangs up in mid-stream."""

    def __init__(self):
        self.left = 2

    def put(self, value):
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("client gone")

    def end(self):
        raise AssertionError("never reached")


@pytest.mark.parametrize("method", few(METHODS, 2))
def test_a_client_gone_in_mid_stream_leaves_the_others_alone(tiny, method):
    prompts, before = requests(tiny)[:3], state(tiny.model)
    one = tiny.inputs([1])

    def call(prompt):
        with pytest.raises(ConnectionError, match="client gone"):
            tiny.model.generate(**one, max_new_tokens=9, streamer=Gone())
        return told(tiny.model, prompt)

    with sieve(tiny.model, ready(method, tiny.model), 0.4, **LLM.get(method, {})):
        wanted = [told(tiny.model, prompt)[0] for prompt in prompts]
        for answers in in_threads(call, prompts):
            assert all(torch.equal(ids, wanted[i]) for i, (ids, _) in answers.items())
    assert state(tiny.model) == before


class Wait:
    """A stopping criterion that waits when the first token is there."""

    def __init__(self):
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __call__(self, input_ids, scores):
        self.reached.set()
        assert self.go_on.wait(60)
        return torch.zeros(len(input_ids), dtype=torch.bool)


@pytest.mark.parametrize("method", ["divprune", "fastv"])
def test_a_cancelled_task_ends_under_its_sieve_and_leaves_nothing(tiny, method):
    """Cancelling the task does not stop the thread, which may outlive the sieve."""
    inputs, before, wait, done = tiny.inputs([1, 2]), state(tiny.model), Wait(), []
    options = LLM.get(method, {})
    with sieve(tiny.model, method, 0.4, **options):
        wanted = told(tiny.model, inputs)

    async def serve():
        def call():
            done.append(told(tiny.model, inputs, stopping_criteria=[wait]))

        with sieve(tiny.model, method, 0.4, **options):
            task = asyncio.ensure_future(asyncio.to_thread(call))
            assert await asyncio.to_thread(wait.reached.wait, 60)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        plain = told(tiny.model, inputs)  # closed: a new call is the model's own
        with pytest.raises(ConfigError, match="at work in another thread"):
            sieve(tiny.model, method, 0.4, **options).__enter__()
        wait.go_on.set()
        return plain

    plain = asyncio.run(serve())  # waits for its threads
    assert torch.equal(done[0][0], wanted[0])
    assert_close(done[0][1], wanted[1], rtol=0, atol=0)
    assert state(tiny.model) == before
    assert torch.equal(plain[0], told(tiny.model, inputs)[0])


def test_plain_calls_do_not_keep_a_closed_sieve(tiny):
    """A server that is never idle can open the next one once the first one's calls are over."""
    inputs, before = tiny.inputs([2]), state(tiny.model)
    plain = told(tiny.model, inputs)
    first, second = Wait(), Wait()
    with ThreadPoolExecutor(2) as pool:
        with sieve(tiny.model, "divprune", 0.4):
            short = pool.submit(told, tiny.model, inputs, stopping_criteria=[first])
            assert first.reached.wait(60)
        late = pool.submit(told, tiny.model, inputs, stopping_criteria=[second])
        assert second.reached.wait(60)
        first.go_on.set()
        short.result()
        with sieve(tiny.model, "fastervlm", 0.4) as report:
            second.go_on.set()
            assert_close(late.result()[1], plain[1], rtol=0, atol=0)
            told(tiny.model, inputs)
        assert len(report.calls) == 1
    assert state(tiny.model) == before


def test_a_plain_call_begun_before_the_sieve_stays_plain(tiny, monkeypatch):
    inputs, answers = tiny.inputs([2]), []
    wanted = told(tiny.model, inputs)
    ready_, go_on = threading.Event(), threading.Event()
    right = tiny.model._prepare_cache_for_generation

    def waits(*args, **kwargs):
        if threading.current_thread() is thread:
            ready_.set()
            assert go_on.wait(60)
        return right(*args, **kwargs)

    thread = threading.Thread(target=lambda: answers.append(told(tiny.model, inputs)))
    monkeypatch.setattr(tiny.model, "_prepare_cache_for_generation", waits)
    thread.start()
    assert ready_.wait(60)
    with sieve(tiny.model, "divprune", 0.4) as report:
        go_on.set()
        thread.join()
    assert_close(answers[0][1], wanted[1], rtol=0, atol=0)
    assert not report.calls


def test_a_sieve_holds_for_every_thread_and_there_is_one(tiny):
    inputs = tiny.inputs([1])
    with ThreadPoolExecutor(1) as pool, sieve(tiny.model, "divprune", 0.4) as report:
        pool.submit(told, tiny.model, inputs).result()
        assert report.kept_tokens < report.visual_tokens
        with pytest.raises(ConfigError, match="one open sieve per model"):
            pool.submit(sieve(tiny.model, "random", 0.4).__enter__).result()


def test_a_callback_may_call_the_model(tiny):
    """What a callback runs is a call of its own, and the call around it goes on as it was."""
    inputs, other = tiny.inputs([2]), tiny.inputs([1], text=(7,))
    seen = []

    def criterion(input_ids, scores):
        seen.append(told(tiny.model, other)[0])
        with torch.no_grad():
            tiny.model(**other)
        return torch.zeros(len(input_ids), dtype=torch.bool)

    for method in ("divprune", "fastv"):
        with sieve(tiny.model, method, 0.4, **LLM.get(method, {})) as report:
            wanted = told(tiny.model, inputs), told(tiny.model, other)[0]
            ids, logits = told(tiny.model, inputs, stopping_criteria=[criterion])
        assert torch.equal(ids, wanted[0][0])
        assert_close(logits, wanted[0][1], rtol=0, atol=0)
        assert all(torch.equal(one, wanted[1]) for one in seen)
        assert len(report.calls) == 3 + 2 * len(seen) > 3
        seen.clear()
