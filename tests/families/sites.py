"""What is to hold of a family at a site, by the checks of the contracts on its tiny model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.testing import assert_close

from families import checks, fewer, inside, steps
from families.methods import ByFeatureNorm, ByNorm, Inside, Smaller
from families.more import MORE
from families.said import require_same, require_tokens
from families.tiny import NAMES, Tiny, build
from tokensieve.budget import count
from tokensieve.errors import UnsupportedError
from tokensieve.hf.sieve import compress
from tokensieve.methods.base import Method

KEEP = 0.4
ALL = (*NAMES, *MORE)
EXACT, WORKS, REFUSED = "exact", "works", "refused"


def check_embeds(tiny: Tiny) -> str:
    """Rows the LLM reads, dropped before it."""
    checks.check_before(tiny, checks.shorten)
    checks.check_alone(tiny, checks.ragged)
    return EXACT


def check_features(tiny: Tiny) -> str:
    """Rows dropped by what the encoder gives."""

    def shorten(model: object, inputs: dict, **options: str) -> dict:
        return compress(model, inputs, ByFeatureNorm(), KEEP, **options).inputs

    checks.check_before(tiny, shorten)
    checks.check_alone(tiny, shorten)
    return EXACT


def check_llm(tiny: Tiny) -> str:
    """Tokens dropped at a layer of the LLM."""
    if tiny.name in checks.STATEFUL:
        return check_shorter(tiny)
    inside.check_blocked(tiny, 1)
    inside.check_alone(tiny, 1)
    return EXACT


def check_shorter(tiny: Tiny) -> str:
    """Layers that hold a state: the model answers, and what it drops is reported."""
    _, report = inside.cut(tiny.model, tiny.inputs([1]), Inside(), 1)
    assert report.stages, f"{tiny.name} dropped nothing inside its LLM"
    return WORKS


def check_encoder(tiny: Tiny) -> str:
    """Patches dropped between layers of the encoder."""
    steps.check_steps(tiny, llm=tiny.name not in checks.STATEFUL)
    _check_fewer(tiny, steps.Norm(), fewer.CLOSE)
    return EXACT


def check_pixels(tiny: Tiny) -> str:
    """A smaller picture."""
    _check_fewer(tiny, Smaller(), checks.CLOSE)
    return WORKS


def _check_fewer(tiny: Tiny, method: Method, close: dict[str, float]) -> None:
    both, alone = (
        compress(tiny.model, tiny.inputs(pictures), method, KEEP, **fewer.positions_of(tiny.model))
        for pictures in ([1, 2], [1])
    )
    for short in (both, alone):
        _check_budget(tiny, short, method.exact)
    rows, first = (
        torch.cat([r.reshape(-1, r.shape[-1])
                   for r in short.inputs["mm_encoder_outputs"]["image"].pooler_output])
        for short in (both, alone)
    )  # fmt: skip
    assert_close(rows[: len(first)], first, **close)
    tokens, logits = checks.answer(tiny.model, both.inputs)
    wanted_tokens, wanted = checks.answer(tiny.model, alone.inputs)
    claim = f"{tiny.name} does not answer a prompt in a batch as it does alone"
    require_same(logits[:1], wanted, claim, **close)
    require_tokens(tokens[:1], wanted_tokens, claim)


def _check_budget(tiny: Tiny, short, exact: bool) -> None:
    """No picture keeps more than its crops' shares, and the prompt holds what the report says.

    A method that is not exact may keep less: a smaller picture is a whole grid.
    """
    call = short.report.calls[0]
    for image in (image for prompt in call.prompts for image in prompt.images):
        kept = image.kept - image.structural
        most = sum(count(KEEP, int(crop.valid.sum())) for crop in image.crops)
        assert most >= kept > 0, f"{tiny.name} keeps {kept} tokens. Expected 1 to {most}."
        assert kept == most or not exact, f"{tiny.name} keeps {kept} tokens. Expected {most}."
    places = int((short.inputs["input_ids"] == tiny.model.config.image_token_id).sum())
    assert places == call.kept_tokens, f"{tiny.name} holds {places} tokens. The report differs."


def check_patches(tiny: Tiny) -> str:
    """Patches that never enter the encoder."""
    fewer.check_blocked(tiny, llm=tiny.name not in checks.STATEFUL)
    fewer.check_alone(tiny)
    return EXACT


def check_once(tiny: Tiny, site: str, pictures: int) -> None:
    """The check of a site on one prompt of so many pictures."""
    if site == "llm":
        inside.check_blocked(tiny, 1, pictures=(pictures,))
    elif site == "patches":
        fewer.check_blocked(tiny, pictures=(pictures,), llm=tiny.name not in checks.STATEFUL)
    elif site == "encoder":
        steps.check_steps(tiny, (pictures,), llm=tiny.name not in checks.STATEFUL)
    elif site in ("features", "embeds"):
        method = ByFeatureNorm() if site == "features" else ByNorm()

        def shorten(model: object, inputs: dict, **options: str) -> dict:
            return compress(model, inputs, method, KEEP, **options).inputs

        checks.check_before(tiny, shorten, pictures=(pictures,))
    else:
        short = compress(tiny.model, tiny.inputs([pictures]), Smaller(), KEEP)
        _check_budget(tiny, short, Smaller.exact)
        checks.answer(tiny.model, short.inputs)


CHECKS: dict[str, Callable[[Tiny], str]] = {
    "pixels": check_pixels,
    "patches": check_patches,
    "encoder": check_encoder,
    "features": check_features,
    "embeds": check_embeds,
    "llm": check_llm,
}


def videos_refused(name: str) -> str:
    """The error of a prompt with a video of a family without. Raises `AssertionError` where there
    is none."""
    tiny = build(name)
    try:
        given = {**tiny.inputs([1]), "pixel_values_videos": torch.zeros(1, 2, 3, 4, 4)}
        compress(tiny.model, given, ByNorm(), 0.4)
    except UnsupportedError as error:
        return str(error)
    raise AssertionError(f"{name} took a video")
