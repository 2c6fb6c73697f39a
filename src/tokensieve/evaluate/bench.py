"""What a picture costs when it runs: time by stage, memory, and what the FLOPs promise beside it.

All methods in turns in one run, so that what else the machine does hits all alike: ratios hold,
milliseconds are this machine's. With fewer layers than the model has, the times of encoder, prefill
and decode are those of the layers run, times how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from tokensieve.cost.flops import prefill_flops_by_layer
from tokensieve.cost.memory import peak, reset_peak
from tokensieve.cost.models import PRESETS
from tokensieve.cost.random_vlm import cut_to, random_inputs, random_vlm
from tokensieve.cost.recipes import recipe_of, training_shape
from tokensieve.cost.shapes import TransformerShape
from tokensieve.errors import ConfigError, TokensieveError, UnsupportedError
from tokensieve.evaluate import records
from tokensieve.evaluate.ask import STAGES, Settings
from tokensieve.evaluate.cells import Cell
from tokensieve.evaluate.prepare import prepared
from tokensieve.hf.families.fingerprint import encoder_info
from tokensieve.hf.models.loaded import Loaded
from tokensieve.hf.report import Call
from tokensieve.hf.sieve import sieve
from tokensieve.methods.registry import method_class
from tokensieve.nn.selector import Selector
from tokensieve.types import Site

BEFORE = (Site.FEATURES, Site.EMBEDS)  # what is left alone where layers are left out
FULL = Cell("full", 1.0)
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Bench:
    """A model that runs, its inputs of one batch, and what stands for what was left out.

    of: (encoder, LLM) how often the layers that run stand for one another.
    """

    name: str
    model: Any
    inputs: Mapping[str, Any]
    batch: int
    of: tuple[float, float] = (1.0, 1.0)
    weights: Any = None

    @classmethod
    def preset(
        cls, name: str, *, tokens: int | None, text: int, batch: int, layers: int | None,
        device: torch.device,
    ) -> Bench:  # fmt: skip
        """Random weights of a preset's shapes, in bfloat16 on a GPU and float32 elsewhere.

        Raises `ConfigError` for a preset that is none, a batch or layers below 1.
        """
        if batch < 1 or text < 1:
            raise ConfigError(f"Expected a batch and text of 1 or more. Got {batch} and {text}.")
        whole = PRESETS[name] if tokens is None else PRESETS[name].of_tokens(tokens)
        shape = cut_to(whole, layers)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        model = random_vlm(shape, dtype, device)
        recipe = training_shape(shape.encoder, recipe_of("default")).selector
        with torch.device(device):
            selector = Selector(replace(recipe, encoder=encoder_info(model))).eval()
        towers = whole.encoder.transformer.layers / shape.encoder.transformer.layers
        of = (towers, whole.llm.layers / shape.llm.layers)
        return cls(name, model, random_inputs(shape, batch, text, model), batch, of, selector)

    @classmethod
    def loaded(cls, loaded: Loaded, batch: int, side: int = 1024) -> Bench:
        """A checkpoint, asked about a picture of noise of `side` pixels, `batch` times over."""
        noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
        inputs = dict(prepared(loaded, Image.fromarray(noise), "What is this?"))
        several = {name: torch.cat([value] * batch) for name, value in inputs.items()}
        return cls(loaded.name, loaded.model, several, batch)

    @property
    def cut(self) -> bool:
        """Whether layers were left out."""
        return max(self.of) > 1


@dataclass(frozen=True)
class Measured:
    """One method at one keep, a picture of the batch: tokens the LLM holds (over its layers on
    average), milliseconds by stage, the most memory of a run in bytes.

    ideal: FLOPs of all tokens' prefill over this one's; measured: the same of times, the selection
    counted in; whole: of encoder, selection, prefill and decode together.
    """

    method: str
    keep: float | int
    tokens: float
    ms: dict[str, float]
    memory: int
    ideal: float
    measured: float
    whole: float
    refused: str = ""


def bench(
    one: Bench, cells: Sequence[Cell], settings: Settings, *, new: int, rounds: int,
    tell: Tell = lambda text: None,
) -> list[Measured]:  # fmt: skip
    """Every cell, all tokens first: medians of `rounds` runs after one to warm up.

    A method that does not fit says why in its row; one inside encoder or LLM is not measured where
    layers were left out. Raises `ConfigError` for no rounds or no new token.
    """
    if rounds < 1 or new < 1:
        raise ConfigError(f"Expected 1 or more rounds and new tokens. Got {rounds} and {new}.")
    todo = [FULL, *(cell for cell in cells if cell.method != "full")]
    times: dict[Cell, list[dict[str, float]]] = {cell: [] for cell in todo}
    calls, memory, refused = dict[Cell, Call](), dict[Cell, int](), dict[Cell, str]()
    for number in range(rounds + 1):
        for cell in todo:
            if cell in refused:
                continue
            try:
                call, most = _run(one, cell, settings, new)
            except (TokensieveError, torch.OutOfMemoryError) as error:
                if cell == FULL:
                    raise
                refused[cell] = " ".join(str(error).split())
                continue
            calls[cell], memory[cell] = call, max(most, memory.get(cell, 0))
            if number:
                times[cell].append(_scaled(one, call.ms))
        tell(f"round {number} of {rounds}" if number else "warmed up")
    return _rows(one, todo, times, calls, memory, refused)


def _run(one: Bench, cell: Cell, settings: Settings, new: int) -> tuple[Call, int]:
    site = method_class(cell.method).site
    plan = replace(settings, options={**settings.options, "seed": cell.seed}).plan(cell.method)
    asked = "a layer of the LLM" if plan.get("layer") is not None else plan.get("site") or site
    if one.cut and cell != FULL and asked not in BEFORE:
        raise UnsupportedError(
            f"Expected a method before the LLM where layers are left out. Got '{cell.method}', "
            f"which acts at {asked}. Run the whole model: --layers all."
        )
    if one.weights is not None and method_class(cell.method).trained and "weights" not in plan:
        plan["weights"] = one.weights
    device = one.model.device
    reset_peak(device)
    with torch.no_grad(), sieve(one.model, cell.method, cell.keep or 1.0, **plan) as report:
        one.model.generate(**one.inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False)
    return report.calls[0], peak(device)


def _scaled(one: Bench, ms: Mapping[str, float]) -> dict[str, float]:
    towers, llm = one.of
    of = {"encode": towers, "select": 1.0, "prefill": llm, "decode": llm}
    return {stage: ms.get(stage, 0.0) * of[stage] / one.batch for stage in STAGES}


def _rows(
    one: Bench, todo: Sequence[Cell], times: Mapping[Cell, list[dict[str, float]]],
    calls: Mapping[Cell, Call], memory: Mapping[Cell, int], refused: Mapping[Cell, str],
) -> list[Measured]:  # fmt: skip
    shape = TransformerShape.of_llm(one.model.config)
    text = one.inputs["input_ids"].shape[1] - calls[FULL].visual_tokens // one.batch
    flops, ms = dict[Cell, int](), dict[Cell, dict[str, float]]()
    for cell, call in calls.items():
        if cell in refused:
            continue
        lengths = [text + visual // one.batch for visual in call.tokens_by_layer(shape.layers)]
        flops[cell] = prefill_flops_by_layer(shape, lengths)
        ms[cell] = {stage: median(run[stage] for run in times[cell]) for stage in STAGES}
    out = []
    for cell in todo:
        if cell in refused:
            out.append(Measured(cell.method, cell.keep, 0.0, {}, 0, 0.0, 0.0, 0.0, refused[cell]))
            continue
        own, held = ms[cell], calls[cell].tokens_by_layer(shape.layers)
        out.append(Measured(
            cell.method, cell.keep, sum(held) / shape.layers / one.batch, own, memory[cell],
            flops[FULL] / flops[cell],
            ms[FULL]["prefill"] / (own["prefill"] + own["select"]),
            sum(ms[FULL].values()) / sum(own.values()),
        ))  # fmt: skip
    return out


def record_of(one: Bench, rows: Sequence[Measured], **asked: Any) -> records.Record:
    """A record of the run."""
    config = {
        "model": one.name, "batch": one.batch, "stands_for": list(one.of),
        "device": str(one.model.device), "dtype": str(one.model.dtype),
        "prompt": one.inputs["input_ids"].shape[1], **asked,
    }  # fmt: skip
    return {
        "form": "bench", "identity": records.identity(config), "config": config,
        **records.provenance(), "threads": torch.get_num_threads(), "gpu": _gpu(one.model.device),
        "rows": [vars(row) for row in rows],
    }  # fmt: skip


def _gpu(device: torch.device) -> str | None:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def check_tokens(
    name: str, tokens: int | None, layers: str | None, text: int | None = None
) -> bool:
    """Whether `name` is a preset. Raises `ConfigError` where a checkpoint is given what only a
    preset takes."""
    if name in PRESETS:
        return True
    if any(given is not None for given in (tokens, layers, text)):
        raise ConfigError(
            f"Expected --tokens, --text and --layers with a preset: {', '.join(PRESETS)}. Got "
            f"'{name}', whose prompt and layers are its own. Leave them out."
        )
    return False


def layers_of(text: str | None, device: torch.device) -> int | None:
    """The layers of a preset to run: "all" or a number; by default all on a GPU, 2 elsewhere.

    Raises `ConfigError` for another text."""
    if text == "all" or (text is None and device.type == "cuda"):
        return None
    try:
        return int(text) if text is not None else 2
    except ValueError:
        raise ConfigError(f"Expected --layers N or 'all'. Got '{text}'.") from None
