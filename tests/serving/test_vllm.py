"""Tokens of vLLM are those of Transformers under a sieve. Runs where vLLM is: `make serve-test`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from serving.engine import TOKENS, ask
from serving.served import by_sieve, model, pictures, prompt
from tokensieve.errors import UnsupportedError
from tokensieve.serving.folder import write_folder
from tokensieve.serving.vllm import FAMILIES

pytestmark = pytest.mark.slow
SIZES = [(96, 60), (60, 96), (48, 48)]
# what each reads: features, embeddings, a grid, pixels; the last three make new rows
METHODS = {
    "selector": {}, "divprune": {}, "stride": {}, "feature-norm": {}, "pixel-variance": {},
    "avgpool": {}, "token-concat": {}, "feature-norm+recycle": {"recycle": True},
}  # fmt: skip

OF_FAMILIES = {
    "llava_next": "feature-norm", "llava_onevision": "feature-norm", "internvl": "feature-norm",
    "idefics3": "divprune", "smolvlm": "divprune",
}  # fmt: skip


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """Folders of models, each written once."""
    return tmp_path_factory.mktemp("served")


def served(room, name):
    folder = room / name
    return folder if folder.exists() else write_folder(*_parts(name), folder)


def _parts(name):
    loaded = model(name)
    return loaded.model, loaded.processor


def requests(room, name, keeps=(None,)):
    """One picture, three of several sizes, and the first again; at each of the keeps."""
    paths = pictures(room, SIZES)
    loaded = model(name)
    asked = [
        {"prompt": prompt(loaded, " w1 w2 w3", len(images)), "images": images}
        for images in ([paths[0]], paths, [paths[1]], [paths[0]])
    ]
    return [{**one, "keep": keep} for keep in keeps for one in asked]


@pytest.mark.parametrize("method", METHODS)
def test_tokens_are_those_of_a_sieve(room, method):
    compared(room, "llava", method.split("+")[0], **METHODS[method])


@pytest.mark.parametrize("name", OF_FAMILIES)
def test_families_answer_as_under_a_sieve(room, name):
    compared(room, name, OF_FAMILIES[name])


def compared(room, name, method, **options):
    """vLLM's answers are those of a sieve, and most of their tokens are beyond rounding."""
    asked = requests(room, name, (None, 0.15))
    setting = {"method": method, "keep": 0.4, "least": 0.1, **options}
    got = ask(room, served(room, name), asked, setting)
    told = 0
    for request, answer in zip(asked, got, strict=True):
        keep = request["keep"] or 0.4
        wanted = by_sieve(model(name), request, method, keep, positions="renumber", **options)
        assert as_in(answer, wanted)
        told += len(wanted[1])
    assert told > TOKENS * len(asked) / 2


def as_in(answer, wanted):
    """Whether prompt and tokens are those wanted."""
    length, tokens = wanted
    return (len(answer["prompt"]), answer["answer"][: len(tokens)]) == (length, tokens)


def test_answers_depend_on_the_choice(room):
    """Else the test above would pass whatever is kept."""
    (request,) = requests(room, "llava")[:1]
    answers = {
        method: tuple(by_sieve(model("llava"), request, method, 0.15, positions="renumber")[1])
        for method in ("selector", "divprune", "stride", "avgpool")
    }
    assert len(set(answers.values())) == len(answers)


def test_without_a_setting_vllm_is_as_it_was(room):
    (request, *_) = asked = requests(room, "llava")[:1]
    (got,) = ask(room, served(room, "llava"), asked, None)
    assert as_in(got, by_sieve(model("llava"), request, "full", 1.0))


def test_all_tokens_are_the_model_itself(room):
    (request, *_) = asked = requests(room, "llava")[:1]
    got = ask(room, served(room, "llava"), asked, {"method": "divprune", "keep": 1})
    assert as_in(got[0], by_sieve(model("llava"), request, "full", 1.0))


def test_chunked_prefill_and_full_caches_change_nothing(room):
    """Prompts of three pictures in steps of 64 tokens, in a KV cache of few blocks."""
    asked = requests(room, "llava", (None, 0.1))
    setting = {"method": "divprune", "keep": 0.3, "least": 0.1}
    small = {"max_num_batched_tokens": 260, "enable_chunked_prefill": True,
             "num_gpu_blocks_override": 6, "long_prefill_token_threshold": 64}  # fmt: skip
    assert ask(room, served(room, "llava"), asked, setting, **small) == ask(
        room, served(room, "llava"), asked, setting
    )


def test_a_request_that_is_preempted_is_answered_as_if_it_were_not(room):
    """Four prompts fit, what they say does not: some are thrown out and read again."""
    (one, *_) = requests(room, "llava")
    length, _ = by_sieve(model("llava"), one, "divprune", 77, positions="renumber")
    kept = 77 + (30 - length) % 32  # so that each prompt ends two places before its last block does
    asked = [{**one, "keep": (kept - less) / 256} for less in range(4)]
    setting = {"method": "divprune", "keep": kept / 256, "least": 0.1}
    folder = served(room, "llava")
    quiet = ask(room, folder, asked, setting, block_size=32)
    tight = ask(
        room, folder, asked, setting, block_size=32, disable_log_stats=False,
        num_gpu_blocks_override=4 * -(-len(quiet[0]["prompt"]) // 32) + 2,
        enable_prefix_caching=False, max_model_len=256,
    )  # fmt: skip
    assert tight[0]["preempted"] > 0
    assert [answer["answer"] for answer in tight] == [answer["answer"] for answer in quiet]


def test_two_processes_share_a_model(room):
    asked = requests(room, "llava")
    setting, folder = {"method": "divprune", "keep": 0.3}, served(room, "llava")
    both = ask(room, folder, asked, setting, tensor_parallel_size=2)
    assert both == ask(room, folder, asked, setting)


def test_nano_answers_as_under_a_sieve(room):
    from tokensieve.assets import asset_path

    loaded = model("nano")
    paths = [str(asset_path("pictures") / f"{name}.png") for name in ("page", "mixed", "scene")]
    asked = [
        {"prompt": prompt(loaded, "What is the total?", 1), "images": [path]} for path in paths
    ]
    got = ask(room, served(room, "nano"), asked, {"method": "selector", "keep": 0.4})
    for request, answer in zip(asked, got, strict=True):
        assert as_in(answer, by_sieve(loaded, request, "selector", 0.4, positions="renumber"))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"method": "fastv", "keep": 0.4}, "drops tokens inside the LLM"),
        ({"method": "cdpruner", "keep": 0.4}, "reads the question"),
        ({"method": "visionzip", "keep": 0.4}, "reads the attention"),
        ({"method": "selector", "keep": 40.5}, "Expected `keep`"),
        ({"method": "selectr", "keep": 0.4}, "Did you mean 'selector'"),
    ],
)
def test_bad_settings_stop_the_start(room, setting, words):
    with pytest.raises(RuntimeError, match=words):
        ask(room, served(room, "llava"), [], setting)


def told(setting):
    hf_config = SimpleNamespace(tokensieve=setting)
    return SimpleNamespace(model_config=SimpleNamespace(hf_config=hf_config))


def test_a_family_that_nobody_compared_is_refused():
    from tokensieve.serving.vllm import OWN, register
    from tokensieve.serving.vllm.models import guarded

    register()
    name = "PaliGemmaForConditionalGeneration"
    assert name in OWN
    with pytest.raises(UnsupportedError, match=f"Got {name}, which is not shown"):
        guarded(name)(vllm_config=told({"method": "divprune", "keep": 0.4}))
    info = SimpleNamespace(ctx=told({"method": "divprune", "keep": 0.4}))
    with pytest.raises(UnsupportedError, match=f"Got {name}, which is not shown"):
        guarded(name)._processor_factory.processor(info, None)


def test_a_model_without_pictures_refuses_a_setting():
    from tokensieve.serving.vllm import OWN, register
    from tokensieve.serving.vllm.models import guarded

    register()
    assert "LlamaForCausalLM" in OWN
    with pytest.raises(UnsupportedError, match="Got LlamaForCausalLM, which is not shown"):
        guarded("LlamaForCausalLM")(vllm_config=told({"method": "divprune", "keep": 0.4}))


def test_an_adapter_of_vllms_stays_one():
    from tokensieve.serving.vllm import register
    from tokensieve.serving.vllm.models import Sieved, guarded

    register()
    kind = guarded("Qwen2ForCausalLM")
    assert issubclass(kind, Sieved)
    adapted = type("ModelForEmbedding", (kind,), {})
    assert type(adapted.__new__(adapted, vllm_config=told(None))) is adapted


def test_without_a_setting_every_class_is_vllms_own():
    from tokensieve.serving.vllm import register
    from tokensieve.serving.vllm.models import guarded

    register()
    kind = guarded("LlavaForConditionalGeneration")
    kind = type("Own", (kind,), {"own": lambda vllm_config, prefix: "own"})
    assert kind(vllm_config=told(None)) == "own"


def test_bad_requests_are_refused_and_the_next_are_answered(room):
    first, *_ = requests(room, "llava")
    asked = [{**first, "keep": 0.05, "alone": True}, {**first, "keep": 0.9}, first]
    setting = {"method": "divprune", "keep": 0.4, "least": 0.1}
    low, high, good = ask(room, served(room, "llava"), asked, setting)
    assert "from 0.1 to 0.4" in low["error"]
    assert "from 0.1 to 0.4" in high["error"]
    assert good["answer"]


def test_every_family_of_the_plugin_is_asked_here():
    asked = ("llava", *OF_FAMILIES)
    assert {type(model(name).model).__name__ for name in asked} == set(FAMILIES)
