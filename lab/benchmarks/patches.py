"""What dropping patches before the encoder saves of encoder and prefill, beside dropping later.

    python -m lab.benchmarks.patches [--size tiny qwen2.5-vl-7b] [--keep 0.2 0.4]

A Qwen2.5-VL of the 7B's widths with random weights: one period of its tower (7 layers with windows,
1 without) and one layer of its LLM, whose times stand for 32 and 28 of them. One typeset page of
about 640 x 480 pixels and 64 words, float32, the least CPU seconds of one thread over some rounds
(what else the machine does counts little), all in one run: shares of the same pass with all tokens.
"tiny" is a model so small that the fixed costs of a call weigh as much as what is saved.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import thread_time
from typing import Any, TypeVar

import torch
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lab import command
from tokensieve.assets import asset_path
from tokensieve.budget import Spread
from tokensieve.cost.models import PRESETS, stages
from tokensieve.evaluate import records
from tokensieve.hf.encoder.places import lay_out
from tokensieve.hf.prompt.reduce import reduce_images
from tokensieve.hf.sieve import compress, encode
from tokensieve.methods.registry import get_method

T = TypeVar("T")
OUT = Path("results/patches")
TEXT, IMAGE, VOCAB = 64, 999, 1000
SIDES = (640, 480)  # pixels of the page
SIZES: dict[str, dict[str, Any]] = {  # layers run and the layers they stand for, then sizes
    "tiny": {"tower": (8, 8), "llm": (4, 4), "width": 64, "ffn": 128, "heads": 4,
             "llm_width": 64, "llm_ffn": 128, "llm_heads": (4, 2)},
    "qwen2.5-vl-7b": {"tower": (8, 32), "llm": (1, 28), "width": 1280, "ffn": 3420, "heads": 16,
                      "llm_width": 3584, "llm_ffn": 18944, "llm_heads": (28, 4)},
}  # fmt: skip
# method, whether it chooses before the encoder, and its keep where that is not the one asked for
ROWS = (("pixel-variance", False, None), ("pixel-variance", True, None),
        ("pixelprune", True, 1.0))  # fmt: skip


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


def spent(work: Callable[[], T], rounds: int) -> tuple[T, float]:
    """What a piece of work gives, and the least CPU seconds of this thread over some rounds."""
    seconds = []
    for _ in range(rounds):
        start = thread_time()
        made = work()
        seconds.append(thread_time() - start)
    return made, min(seconds)


class Bench:
    """A model and a page, with what both take with all tokens."""

    def __init__(self, name: str, rounds: int) -> None:
        self.name, self.rounds, self.size = name, rounds, SIZES[name]
        self.inputs, self.model = page(), build(self.size)
        self.encoded, self.encode_s = spent(lambda: encode(self.model, self.inputs), rounds)
        self.full = self.row("full", False, 1.0)

    def row(self, name: str, early: bool, keep: float) -> dict[str, Any]:
        """Seconds by stage; layers that were not run count as those that were."""
        method = get_method(name, site="patches" if early else None)
        given = lay_out(self.model, self.inputs) if early else self.encoded
        choose = partial(reduce_images, self.model, method, given, keep, Spread())
        _, select_s = spent(choose, self.rounds)
        encode_s = self.encode_s
        if early:
            work = partial(compress, self.model, self.inputs, method, keep)
            short, both = spent(work, self.rounds)
            encode_s = both - select_s
        else:
            short = compress(self.model, self.encoded, method, keep)
        _, prefill_s = spent(lambda: self.model(**short.inputs, logits_to_keep=1), self.rounds)
        (tower, towers), (llm, llms) = self.size["tower"], self.size["llm"]
        found = {
            "encode_s": encode_s * towers / tower, "select_s": select_s,
            "prefill_s": prefill_s * llms / llm,
        }  # fmt: skip
        total = sum(found.values())
        report, whole = short.report, total if name == "full" else self.full["total_s"]
        kept = report.kept_tokens / report.visual_tokens
        row = {"method": name, "before_encoder": early, "keep": keep, "kept": round(kept, 3),
               "share": round(total / whole, 3), "total_s": round(total, 4),
               **{stage: round(seconds, 4) for stage, seconds in found.items()}}  # fmt: skip
        if self.name in PRESETS:
            row["flops_share"] = round(counted(kept, early=early), 3)
        print(self.name, row, flush=True)
        return row


def counted(keep: float, *, early: bool) -> float:
    """The same share by formula, of the 7B on the picture that its preset reads."""

    def total(keep: float, early: bool) -> int:
        found = stages(PRESETS["qwen2.5-vl-7b"], keep, text=TEXT, new=1, patches=early)
        return found["encoder"] + found["prefill"]

    return total(keep, early) / total(1.0, False)


def record(name: str, keeps: list[float], rounds: int) -> records.Record:
    """All rows of one size."""
    with torch.inference_mode():
        bench = Bench(name, rounds)
        rows = [bench.full]
        for method, early, own in ROWS:
            rows += [bench.row(method, early, keep) for keep in ([own] if own else keeps)]
    config = {"size": name, "keeps": keeps, "rounds": rounds, "text": TEXT,
              "sizes": {k: list(v) if isinstance(v, tuple) else v for k, v in SIZES[name].items()},
              "grid": bench.inputs["image_grid_thw"].tolist()}  # fmt: skip
    return {"form": "patches", "identity": records.identity(config), "config": config,
            **records.provenance(), "threads": torch.get_num_threads(), "note": __doc__,
            "rows": rows}  # fmt: skip


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
