"""Every family at every site in every mode, from the checks as they are now: `make families`.

Writes results/families/cells.json, docs/results/families.md of it and the block "families" of the
README. `tests/contract/test_modes.py` runs every cell again, `tests/docs/test_families_page.py`
holds the page against the record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from families.modes import MODES, PLACES, UPSTREAM, row
from families.sites import CHECKS, EXACT, REFUSED, WORKS
from lab.report.markdown import table
from lab.report.page import document, fold, put_block, words
from tokensieve.files import write_text

RECORD = Path("results") / "families" / "cells.json"
TEST = "tests/contract/test_modes.py::test_a_row_is_as_the_page_says"
Cells = dict[str, dict[str, dict[str, tuple[str, str]]]]  # family, site, mode -> state, reason
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
    "kimi_k25": "Kimi-K2.5", "perception_lm": "Perception-LM", "fast_vlm": "FastVLM",
    "molmo2": "Molmo2", "minicpmv4_6": "MiniCPM-V 4.6",
}  # fmt: skip
LEGEND = (
    "*exact*: tokens and logits are those of the whole prompt whose dropped tokens are masked, in "
    "a batch as alone. *works*: budgets are held and the model answers, in a batch as alone; a "
    "smaller picture has no whole prompt to be equal to. Inside the encoder the whole prompt's "
    "tower may not look at a patch from the layer on behind which it went. *refused*: an error "
    "says what to do instead. "
    "LFM2-VL, Qwen3.5 and MiniCPM-V 4.6 have layers that a masked token goes through all the "
    "same: there *exact* before the LLM is a prompt put together by hand of what is left, and "
    "inside it *works* says that the model answers. EXAONE-4.5 counts positions anew, whatever it "
    "is told. "
    "Perception-LM and FastVLM stand here around another tower than theirs, which is timm's."
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
HEADS = {
    "pixels": "smaller picture", "patches": "before the encoder", "encoder": "inside the encoder",
    "features": "encoder's features", "embeds": "before the LLM", "llm": "inside the LLM",
}  # fmt: skip
CALLED = (
    "Each row is a test, `%s[FAMILY-SITE]`; FAMILY is a name of `tests/families/`, SITE one of "
    "%s. *one* is a prompt of one picture and *batch* two prompts of one and two, padded, each as "
    "alone: both are held against the whole prompt with the dropped keys blocked. In the other "
    "modes, the call under a sieve is held against the model itself on what `compress` returns, "
    "or, inside the LLM, on the whole prompt with the dropped keys blocked. *chat turn*: a second "
    "turn on the first one's cache. *labels*: the loss. *upstream*: wrong without a sieve too, by "
    "a check of the same mode with all tokens kept."
)
BEAMS = (
    "GLM-4V's own code mixes up the pictures of a prompt under beams. Before the LLM a sieve hands "
    "them over in their order; inside the LLM it leaves the model's code alone."
)


def measured() -> Cells:
    """All cells, as the checks say now."""
    cells: Cells = {}
    for name, site in PLACES:
        cells.setdefault(name, {})[site] = row(name, site)
    return cells


def write_record(path: Path, cells: Cells) -> None:
    """Reasons once each, and of each row the state of every mode with the number of its reason."""
    reasons = sorted({said for sites in cells.values() for modes in sites.values()
                      for _, said in modes.values() if said})  # fmt: skip
    rows = {
        f"{name}-{site}": " ".join(
            state + (f":{reasons.index(said)}" if said else "") for state, said in modes.values()
        )
        for name, sites in cells.items()
        for site, modes in sites.items()
    }
    record = {"config": {"modes": [*MODES]}, "reasons": reasons, "rows": rows}
    write_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def read_record(path: Path) -> Cells:
    """The cells of a record."""
    record, cells = json.loads(path.read_text("utf-8")), {}
    for key, said in record["rows"].items():
        name, site = key.split("-")
        modes = {}
        for mode, one in zip(record["config"]["modes"], said.split(" "), strict=True):
            state, _, number = one.partition(":")
            modes[mode] = (state, record["reasons"][int(number)] if number else "")
        cells.setdefault(name, {})[site] = modes
    return cells


def grouped(rows: Mapping[str, Sequence[str]], heads: Sequence[str]) -> str:
    """A table in which families that do the same share a row."""
    shared: dict[tuple[str, ...], list[str]] = {}
    for name, said in rows.items():
        shared.setdefault(tuple(said), []).append(TITLES.get(name, name))
    return table([["family", *heads], *[[", ".join(n), *said] for said, n in shared.items()]])


def sites_table(cells: Cells) -> str:
    """Families and sites, by a padded batch."""
    rows = {n: [sites[s]["batch"][0] for s in CHECKS] for n, sites in cells.items()}
    return grouped(rows, [HEADS[site] for site in CHECKS])


def modes_table(cells: Cells, site: str) -> str:
    """Families and modes at a site."""
    rows = {n: [sites[site][mode][0] for mode in MODES] for n, sites in cells.items()}
    return grouped(rows, [*MODES.values()])


def reasons(cells: Cells) -> str:
    """One of each kind of refusal: of a site, and of a mode where the site is there."""
    said = {}
    for name, sites in cells.items():
        for site, modes in sites.items():
            for mode, (state, reason) in modes.items():
                if state == REFUSED and modes["batch"][0] == REFUSED:
                    said.setdefault(HEADS[site], (name, reason))
                elif state in (REFUSED, UPSTREAM):
                    kind = reason.split(" Got ")[0].split(": ")[0]
                    said.setdefault((mode, kind), (name, f"{HEADS[site]}, {MODES[mode]}", reason))
    lines = []
    for head, found in said.items():
        where = head if isinstance(head, str) else found[1]
        lines.append(f"- {where}, {TITLES.get(found[0], found[0])}: {found[-1]}")
    return "\n".join(lines)


def page(cells: Cells) -> str:
    """docs/results/families.md."""
    pairs = [modes["batch"][0] for sites in cells.values() for modes in sites.values()]
    every = [state for sites in cells.values() for modes in sites.values()
             for state, _ in modes.values()]  # fmt: skip
    everywhere = [HEADS[s] for s in CHECKS
                  if all(sites[s]["batch"][0] != REFUSED for sites in cells.values())]  # fmt: skip
    counts = ", ".join(f"{every.count(state)} {state}" for state in (EXACT, WORKS, REFUSED))
    message = (
        f"Of {len(pairs)} pairs of family and site, {pairs.count(EXACT)} are exact, "
        f"{pairs.count(WORKS)} work and {pairs.count(REFUSED)} are refused with an error; "
        f"{words(everywhere) or 'no site'} {'are' if len(everywhere) > 1 else 'is'} there for all "
        f"{len(cells)} families. In "
        f"{len(MODES)} ways of calling a model that makes {len(every)} cells: {counts}, "
        f"{every.count(UPSTREAM)} wrong upstream."
    )
    called = CALLED % (TEST, words([f"`{site}`" for site in CHECKS]))
    parts = [
        sites_table(cells),
        LEGEND + " Shown on tiny models of each family's own code, with random weights; it cannot "
        "show what a checkpoint's processor does besides.",
        "## Ways of calling a model",
        called,
        *[fold(HEADS[site], modes_table(cells, site)) for site in CHECKS],
        BEAMS,
        "Videos stand beside a picture in one prompt, with a budget for each frame. Every family "
        "that takes them also gives the plain answer with all tokens kept, difference 0, and holds "
        "budgets over frames: `tests/contract/test_videos.py`.",
        "## Any other family",
        UNLISTED,
        "## What a refusal says",
        "One of each kind, as the library words it.",
        reasons(cells),
    ]
    return document("Families and sites", message, parts, "`make families` from the models' own "
                    "answers to the checks in `tests/families/`")  # fmt: skip


def readme_block(cells: Cells) -> str:
    """The table, and how to read it."""
    return f"{sites_table(cells)}\n\n{LEGEND}"


def main(root: Path = Path()) -> None:
    """Write the record, the page, and the README's block where it has one."""
    torch.set_num_threads(1)
    write_record(root / RECORD, measured())
    cells = read_record(root / RECORD)
    write_text(root / "docs" / "results" / "families.md", page(cells))
    readme = root / "README.md"
    if "<!-- families:begin -->" in readme.read_text("utf-8"):
        put_block(readme, "families", readme_block(cells))


if __name__ == "__main__":
    main()
