"""What dropping patches before the encoder saves of encoder and prefill, beside dropping later.

    python -m lab.benchmarks.patches [--size tiny qwen2.5-vl-7b] [--keep 0.2 0.4]

A Qwen2.5-VL of the 7B's widths with random weights: one period of its tower (7 layers with windows,
1 without) and one layer of its LLM, whose times stand for 32 and 28 of them. One typeset page of
about 640 x 480 pixels, no text but 64 words, float32, one thread, the least of some rounds, all in
one run: shares of the same pass with all tokens. "tiny" is a model so small that the fixed costs of
a call weigh as much as what is saved.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lab import command
from tokensieve.assets import asset_path
from tokensieve.cost.models import PRESETS, stages
from tokensieve.evaluate import records
from tokensieve.hf.sieve import sieve
from tokensieve.methods.registry import get_method

OUT = Path("results/patches")
TEXT, IMAGE, VOCAB = 64, 999, 1000
SIDES = (640, 480)  # pixels of the page
SIZES = {  # layers run and the layers they stand for, then sizes
    "tiny": {"tower": (8, 8), "llm": (4, 4), "width": 64, "ffn": 128, "heads": 4,
             "llm_width": 64, "llm_ffn": 128, "llm_heads": (4, 2)},
    "qwen2.5-vl-7b": {"tower": (8, 32), "llm": (1, 28), "width": 1280, "ffn": 3420, "heads": 16,
                      "llm_width": 3584, "llm_ffn": 18944, "llm_heads": (28, 4)},
}  # fmt: skip
# method, whether it chooses before the encoder, and its keep where that is not the one asked for
ROWS = (("pixel-variance", False, None), ("pixel-variance", True, None), ("random", True, None),
        ("pixelprune", True, None), ("pixelprune", True, 1.0))  # fmt: skip


def build(size: dict[str, Any]) -> Any:
    """A Qwen2.5-VL of these sizes, random weights."""
    heads, groups = size["llm_heads"]
    layers = size["tower"][0]
    torch.manual_seed(0)
    third = size["llm_width"] // heads // 2
    rope = {"rope_type": "default", "rope_theta": 1e6,
            "mrope_section": [third - 2 * (third // 3), third // 3, third // 3]}  # fmt: skip
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": layers, "hidden_size": size["width"], "intermediate_size": size["ffn"],
            "num_heads": size["heads"], "out_hidden_size": size["llm_width"], "patch_size": 14,
            "window_size": 112, "fullatt_block_indexes": [layers - 1],
        },
        text_config={
            "model_type": "qwen2_5_vl_text", "hidden_size": size["llm_width"],
            "intermediate_size": size["llm_ffn"], "num_hidden_layers": size["llm"][0],
            "num_attention_heads": heads, "num_key_value_heads": groups, "vocab_size": VOCAB,
            "rope_parameters": rope, "bos_token_id": None, "eos_token_id": None,
        },
        image_token_id=IMAGE, video_token_id=998, vision_start_token_id=997,
        vision_end_token_id=996,
    )  # fmt: skip
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.train(False)
    return model


def page() -> dict[str, torch.Tensor]:
    """A typeset page and some words."""
    picture = Image.open(asset_path("pictures") / "typeset.png").convert("RGB").resize(SIDES)
    made = dict(Qwen2VLImageProcessorPil(patch_size=14, merge_size=2)(
        images=[picture], return_tensors="pt"))  # fmt: skip
    rows = int(made["image_grid_thw"].prod()) // 4
    words = torch.randint(1, 900, (TEXT,), generator=torch.Generator().manual_seed(0)).tolist()
    ids = torch.tensor([[997, *[IMAGE] * rows, 996, *words]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == IMAGE).int(), **made}  # fmt: skip


def measure(model: Any, inputs: dict[str, torch.Tensor], method: Any, keep: float, rounds: int,
            size: dict[str, Any]) -> dict[str, float]:  # fmt: skip
    """Milliseconds by stage, layers not run counted by those that were, and the share kept."""
    spent: dict[str, float] = {}
    with torch.inference_mode(), sieve(model, method, keep) as report:
        for _ in range(rounds):
            model(**inputs, logits_to_keep=1)
        for call in report.calls:
            for stage in ("encode", "select", "prefill"):
                ms = call.ms.get(stage, 0.0)
                spent[stage] = min(ms, spent.get(stage, ms))
    for stage, part in (("encode", "tower"), ("prefill", "llm")):
        run, whole = size[part]
        spent[stage] *= whole / run
    return {**spent, "kept": report.kept_tokens / report.visual_tokens}


def counted(keep: float, *, early: bool) -> float:
    """The same share by formula, of the 7B on the picture that its preset reads."""

    def total(keep: float, early: bool) -> int:
        found = stages(PRESETS["qwen2.5-vl-7b"], keep, text=TEXT, new=1, patches=early)
        return found["encoder"] + found["prefill"]

    return total(keep, early) / total(1.0, False)


def record(name: str, keeps: list[float], rounds: int) -> records.Record:
    """All rows of one size."""
    size, inputs = SIZES[name], page()
    model = build(size)
    full = measure(model, inputs, "full", 1.0, rounds + 1, size)
    whole = full["encode"] + full["prefill"]
    rows = [{"method": "full", "before_encoder": False, "keep": 1.0, **_rounded(full, whole)}]
    for method, early, own in ROWS:
        for keep in [own] if own is not None else keeps:
            chosen = get_method(method, site="patches" if early else None)
            found = measure(model, inputs, chosen, keep, rounds, size)
            rows.append({"method": method, "before_encoder": early, "keep": keep,
                         **_rounded(found, whole)})  # fmt: skip
            if name in PRESETS:
                rows[-1]["flops_share"] = round(counted(found["kept"], early=early), 3)
            print(name, rows[-1], flush=True)
    config = {"size": name, "keeps": keeps, "rounds": rounds, "text": TEXT,
              "sizes": {k: list(v) if isinstance(v, tuple) else v for k, v in size.items()},
              "grid": inputs["image_grid_thw"].tolist()}  # fmt: skip
    return {"form": "patches", "identity": records.identity(config), "config": config,
            **records.provenance(), "threads": torch.get_num_threads(), "note": __doc__,
            "rows": rows}  # fmt: skip


def _rounded(found: dict[str, float], whole: float) -> dict[str, float]:
    share = (found["encode"] + found["select"] + found["prefill"]) / whole
    return {
        "kept": round(found["kept"], 3),
        "share": round(share, 3),
        **{f"{stage}_ms": round(found[stage], 1) for stage in ("encode", "select", "prefill")},
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--keep", type=float, nargs="+", default=[0.2, 0.4])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    o = command.parse(parser)
    for name in o.size:
        records.write(o.out / f"{name}.json", record(name, o.keep, o.rounds))


if __name__ == "__main__":
    command.run(main)
