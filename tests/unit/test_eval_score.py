"""One forward with the gold answer appended says what `generate` would have answered."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from tokensieve.errors import PromptError
from tokensieve.evaluate.score import IGNORE, all_right, answer_ids, append, prepare, prompt, score
from tokensieve.evaluate.subject import Subject
from tokensieve.evaluate.tasks import Item, load_tasks
from tokensieve.hf.compress import compress
from tokensieve.hf.encoder.encode import encode
from tokensieve.hf.sieve import sieve
from toys.eval_tiny import tiny_subject

ANSWER = 4
OTHER = 7  # a token that is no placeholder


@pytest.fixture(scope="module")
def subject() -> Subject:
    return tiny_subject()


@pytest.fixture(scope="module")
def items() -> tuple[Item, ...]:
    return load_tasks("mixed", "val", 3)[1].items  # questions of different lengths


def _inputs(subject: Subject, items: tuple[Item, ...]) -> dict[str, torch.Tensor]:
    texts = [prompt(subject.processor, item.question.text) for item in items]
    images = [item.image for item in items]
    return dict(subject.processor(images=images, text=texts, padding=True, return_tensors="pt"))


def _marks(
    subject: Subject, inputs: dict[str, torch.Tensor], answers: list[list[int]], **how: object
) -> list[bool]:
    """What scoring says of `answers`."""
    with torch.inference_mode():
        short = compress(subject.model, encode(subject.model, append(inputs, answers)), **how)
        ready = dict(short.inputs)
        labels = ready.pop("labels")
        return all_right(subject.model(**ready, use_cache=False).logits, labels).tolist()


@pytest.mark.parametrize("positions", ["keep", "renumber"])
@pytest.mark.parametrize(
    ("method", "keep"),
    [("full", 1.0), ("none", 1.0), ("stride", 0.2), ("random", 0.5), ("avgpool", 0.1),
     ("downsample", 0.3)],
)  # fmt: skip
def test_agrees_with_generate(
    subject: Subject, items: tuple[Item, ...], method: str, keep: float, positions: str
) -> None:
    """The very tokens `generate` gives are marked right; any other token is marked wrong."""
    inputs = _inputs(subject, items)
    how = {"method": method, "keep": keep, "positions": positions}
    with sieve(subject.model, **how):
        out = subject.model.generate(**inputs, max_new_tokens=ANSWER, do_sample=False,
                                     eos_token_id=None)  # fmt: skip
    told = out[:, -ANSWER:].tolist()
    assert _marks(subject, inputs, told, **how) == [True] * len(items)
    for place in range(ANSWER):
        wrong = [list(answer) for answer in told]
        wrong[1][place] = OTHER if told[1][place] != OTHER else OTHER + 1
        assert _marks(subject, inputs, wrong, **how) == [True, False, True]


def test_answers_of_different_lengths_do_not_disturb_each_other(
    subject: Subject, items: tuple[Item, ...]
) -> None:
    inputs = _inputs(subject, items)
    with sieve(subject.model, "stride", keep=0.2):
        out = subject.model.generate(**inputs, max_new_tokens=ANSWER, do_sample=False,
                                     eos_token_id=None)  # fmt: skip
    told = out[:, -ANSWER:].tolist()
    told = [told[0][:1], told[1][:3], told[2]]
    assert _marks(subject, inputs, told, method="stride", keep=0.2) == [True, True, True]
    told[1][2] = OTHER if told[1][2] != OTHER else OTHER + 1
    assert _marks(subject, inputs, told, method="stride", keep=0.2) == [True, False, True]


def test_marks_that_ignore_the_end_would_be_caught() -> None:
    """A gold answer is right only with its last token, the end of the sequence."""
    labels = torch.tensor([[IGNORE, 5, 1]])
    logits = torch.zeros(1, 3, 8)
    logits[0, 0, 5] = 1
    logits[0, 1, 1] = 1
    assert all_right(logits, labels).tolist() == [True]
    logits[0, 1, 6] = 2  # goes on talking
    assert all_right(logits, labels).tolist() == [False]


def test_batch_scores_as_its_parts(subject: Subject, items: tuple[Item, ...]) -> None:
    """Counts, tokens and FLOPs of a batch are those of its prompts alone."""
    method = subject.bound("random", {"seed": 1})
    whole = score(subject.model, prepare(subject.model, subject.processor, items), method, 0.3,
                  positions="keep")  # fmt: skip
    parts = [
        score(subject.model, prepare(subject.model, subject.processor, [item]), method, 0.3,
              positions="keep")
        for item in items
    ]  # fmt: skip
    assert whole.hits == [hit for part in parts for hit in part.hits]
    assert whole.prompt_tokens == [n for part in parts for n in part.prompt_tokens]
    assert whole.flops == [n for part in parts for n in part.flops]
    assert (whole.visual_tokens, whole.kept_tokens) == (3 * 256, 3 * 77)


def test_a_method_that_reads_gradients_is_scored(subject: Subject, items: tuple[Item, ...]) -> None:
    batch = prepare(subject.model, subject.processor, items[:1])
    found = score(subject.model, batch, subject.bound("trio", {}), 0.5, positions="keep")
    assert found.kept_tokens < found.visual_tokens


def test_an_answer_outside_the_vocabulary_is_an_error(subject: Subject) -> None:
    with pytest.raises(PromptError, match="within the vocabulary"):
        answer_ids(subject.processor, "xylophone")
