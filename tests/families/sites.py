"""Which family is exact at which site, as its model answers now: `make families`.

Every cell runs the checks of the contracts on a tiny model of the family. Writes
docs/results/families.md and the block "families" of the README.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.testing import assert_close

from families import checks, fewer, inside
from families.methods import ByFeatureNorm, ByNorm, Inside, Smaller
from families.more import MORE
from families.said import require_same, require_tokens
from families.tiny import NAMES, Tiny, build
from families.videos import NAMES as VIDEO_NAMES
from families.videos import build_video, check_before, check_inside
from lab.report.markdown import table
from lab.report.page import document, put_block, words
from tokensieve.budget import count
from tokensieve.errors import UnsupportedError
from tokensieve.files import write_text
from tokensieve.hf.sieve import compress
from tokensieve.methods.base import Method
from tokensieve.types import Site

KEEP = 0.4
ALL = (*NAMES, *MORE)
EXACT, WORKS, REFUSED = "exact", "works", "refused"
TITLES = {
    "llava": "LLaVA-1.5", "llava_next": "LLaVA-NeXT", "vipllava": "VipLLaVA",
    "pixtral_llava": "Pixtral (LLaVA form)", "mistral3": "Mistral 3",
    "llava_onevision": "LLaVA-OneVision", "internvl": "InternVL", "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL", "qwen3_vl": "Qwen3-VL", "idefics3": "Idefics3",
    "smolvlm": "SmolVLM", "gemma3": "Gemma 3", "paligemma": "PaliGemma",
    "fused_llava": "fused LLaVA", "fused_siglip": "fused SigLIP",
    "fused_internvl": "fused InternVL",
    "llava_next_video": "LLaVA-NeXT-Video", "video_llava": "Video-LLaVA",
    "aya_vision": "Aya Vision", "cohere2_vision": "Cohere2-Vision", "idefics2": "Idefics2",
    "qwen3_vl_moe": "Qwen3-VL-MoE", "qwen3_5": "Qwen3.5", "qwen2_5_omni": "Qwen2.5-Omni (thinker)",
    "glm4v": "GLM-4V", "glm46v": "GLM-4.6V", "glm4v_moe": "GLM-4.5V", "glm_ocr": "GLM-OCR",
    "lfm2_vl": "LFM2-VL", "gemma4": "Gemma 4", "got_ocr2": "GOT-OCR2", "lighton_ocr": "LightOn-OCR",
    "deepseek_vl": "DeepSeek-VL", "janus": "Janus", "ovis2": "Ovis2",
    "ernie4_5_vl": "Ernie-4.5-VL", "paddleocr_vl": "PaddleOCR-VL", "hunyuan_vl": "HunYuan-VL",
    "exaone4_5": "EXAONE-4.5", "aria": "Aria", "video_llama_3": "VideoLLaMA3",
    "kimi_k25": "Kimi-K2.5",
}  # fmt: skip
LEGEND = (
    "*exact*: tokens and logits are those of the whole prompt whose dropped tokens are masked, in "
    "a batch as alone. *works*: budgets are held and the model answers, in a batch as alone; a "
    "smaller picture, or later layers of an encoder that see fewer patches, have no whole prompt "
    "to be equal to. *refused*: an error says what to do instead. Videos have a table of their "
    "own. LFM2-VL and Qwen3.5 have layers that a masked token goes through all the same: there "
    "*exact* before the LLM is a prompt put together by hand of what is left, and inside it "
    "*works* says that the model answers. EXAONE-4.5 counts positions anew, whatever it is told."
)


UNLISTED = (
    "A model of a family that has no row here is shortened before the LLM once it has proven "
    "itself: on its first prompt with a picture the sieve checks, in about the time of four "
    "prefills, that a prompt which keeps all its tokens is answered as the model itself answers, "
    "that positions are read as they are handed over, and that dropped tokens are as if blocked. "
    "If one of these does not hold, an error says which. `trusted=True` skips it. Models whose "
    "LLM reads pictures through cross-attention (Mllama, Idefics), through a Q-Former (BLIP-2, "
    "InstructBLIP) or from an encoder (Florence-2, T5Gemma 2), and classes that are not "
    "Transformers' own, are refused with the reason."
)


@dataclass(frozen=True)
class ByHiddenNorm(ByNorm):
    """Keep patches of largest norm inside the encoder."""

    site = Site.ENCODER


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
        return _check_shorter(tiny)
    inside.check_blocked(tiny, 1)
    inside.check_alone(tiny, 1)
    return EXACT


def _check_shorter(tiny: Tiny) -> str:
    """Layers that hold a state: the model answers, and what it drops is reported."""
    _, report = inside.cut(tiny.model, tiny.inputs([1]), Inside(), 1)
    assert report.stages, f"{tiny.name} dropped nothing inside its LLM"
    return WORKS


def check_encoder(tiny: Tiny) -> str:
    """Patches dropped between layers of the encoder."""
    return _check_fewer(tiny, ByHiddenNorm())


def check_pixels(tiny: Tiny) -> str:
    """A smaller picture."""
    return _check_fewer(tiny, Smaller())


def _check_fewer(tiny: Tiny, method: Method) -> str:
    both, alone = (
        compress(tiny.model, tiny.inputs(pictures), method, KEEP) for pictures in ([1, 2], [1])
    )
    for short in (both, alone):
        _check_budget(tiny, short, method.exact)
    rows, first = (
        torch.cat([r.reshape(-1, r.shape[-1])
                   for r in short.inputs["mm_encoder_outputs"]["image"].pooler_output])
        for short in (both, alone)
    )  # fmt: skip
    assert_close(rows[: len(first)], first, **checks.CLOSE)
    tokens, logits = checks.answer(tiny.model, both.inputs)
    wanted_tokens, wanted = checks.answer(tiny.model, alone.inputs)
    claim = f"{tiny.name} does not answer a prompt in a batch as it does alone"
    require_same(logits[:1], wanted, claim, **checks.CLOSE)
    require_tokens(tokens[:1], wanted_tokens, claim)
    return WORKS


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
    elif site in ("features", "embeds"):
        method = ByFeatureNorm() if site == "features" else ByNorm()

        def shorten(model: object, inputs: dict, **options: str) -> dict:
            return compress(model, inputs, method, KEEP, **options).inputs

        checks.check_before(tiny, shorten, pictures=(pictures,))
    else:
        method = Smaller() if site == "pixels" else ByHiddenNorm()
        short = compress(tiny.model, tiny.inputs([pictures]), method, KEEP)
        _check_budget(tiny, short, method.exact)
        checks.answer(tiny.model, short.inputs)


CHECKS: dict[str, Callable[[Tiny], str]] = {
    "pixels": check_pixels,
    "patches": check_patches,
    "encoder": check_encoder,
    "features": check_features,
    "embeds": check_embeds,
    "llm": check_llm,
}
HEADS = {
    "pixels": "smaller picture", "patches": "before the encoder", "encoder": "inside the encoder", "features": "encoder's features",
    "embeds": "before the LLM", "llm": "inside the LLM",
}  # fmt: skip


def cell(name: str, site: str) -> tuple[str, str]:
    """What the family does at a site, and the error where it refuses.

    Raises what else a check raises: a family that is wrong has no page.
    """
    try:
        return CHECKS[site](build(name)), ""
    except UnsupportedError as error:
        return REFUSED, str(error)


def cells() -> dict[str, dict[str, tuple[str, str]]]:
    """Every family at every site."""
    return {name: {site: cell(name, site) for site in CHECKS} for name in ALL}


def video_cells() -> dict[str, tuple[str, str]]:
    """What each family with videos does before its LLM, and inside it."""
    for name in VIDEO_NAMES:
        videos = build_video(name)
        check_before(videos, checks.shorten)
        check_inside(videos)
    return dict.fromkeys(VIDEO_NAMES, (EXACT, EXACT))


def video_table() -> str:
    """The families with videos."""
    rows = [[TITLES.get(name, name), *said] for name, said in video_cells().items()]
    return table([["family, videos", HEADS["embeds"], HEADS["llm"]], *rows])


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


def grouped(found: dict[str, dict[str, tuple[str, str]]]) -> str:
    """The table: families that do the same share a row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for name, sites in found.items():
        said = tuple(sites[site][0] for site in CHECKS)
        rows.setdefault(said, []).append(TITLES.get(name, name))
    body = [[", ".join(names), *said] for said, names in rows.items()]
    return table([["family", *[HEADS[site] for site in CHECKS]], *body])


def page(found: dict[str, dict[str, tuple[str, str]]]) -> str:
    """docs/results/families.md."""
    said = [state for sites in found.values() for state, _ in sites.values()]
    everywhere = [
        HEADS[site] for site in CHECKS if all(s[site][0] != REFUSED for s in found.values())
    ]
    message = (
        f"Of {len(said)} pairs of family and site, {said.count(EXACT)} are exact, "
        f"{said.count(WORKS)} work and {said.count(REFUSED)} are refused with an error; "
        f"{words(everywhere) or 'no site'} is there for all {len(found)} families."
    )
    refusals, videos = [], sorted({videos_refused("llava") for name in found if name == "llava"})
    for site, head in HEADS.items():
        said_by = {name: sites[site][1] for name, sites in found.items() if sites[site][1]}
        if said_by:
            first = next(iter(said_by))
            refusals.append(f"- {head}, {TITLES.get(first, first)}: {said_by[first]}")
    parts = [
        grouped(found),
        LEGEND + " Shown on tiny models of each family's own code, with random weights; it cannot "
        "show what a checkpoint's processor does besides.",
        "## Videos",
        "A video and a picture in one prompt, a budget for each frame. Every family of the table "
        "also gives the plain answer with all tokens kept, difference 0, answers in a batch as "
        "alone, with beams, and holds budgets over frames: `tests/contract/test_videos.py`.",
        video_table(),
        "## Any other family",
        UNLISTED,
        "## What a refusal says",
        "One of each site, as the library words it.",
        "\n".join([*refusals, *[f"- videos, LLaVA-1.5: {one}" for one in videos]]),
    ]
    return document("Families and sites", message, parts, "`make families` from the models' own "
                    "answers to the checks in `tests/families/`")  # fmt: skip


def readme_block(found: dict[str, dict[str, tuple[str, str]]]) -> str:
    """The table, and how to read it."""
    return f"{grouped(found)}\n\n{LEGEND}"


def main(root: Path = Path()) -> None:
    """Write the page, and the README's block where it has one."""
    torch.set_num_threads(1)
    found = cells()
    write_text(root / "docs" / "results" / "families.md", page(found))
    readme = root / "README.md"
    if "<!-- families:begin -->" in readme.read_text("utf-8"):
        put_block(readme, "families", readme_block(found))


if __name__ == "__main__":
    main()
