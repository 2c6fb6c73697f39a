"""A selector as a file for engines without PyTorch: ONNX, or OpenVINO's own format.

The whole choice is in it, weights and rule: crops' tokens in, the indices that stay out.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import tensor

from tokensieve import __version__
from tokensieve.budget import count
from tokensieve.data.extras import need
from tokensieve.errors import ConfigError, UnsupportedError
from tokensieve.files import refused_in_words, written_folder
from tokensieve.nn.selection import FixedSelection, Selection
from tokensieve.nn.selector import Selector
from tokensieve.types import Grid, Site

SUFFIXES = (".onnx", ".xml")
OPSET = 20  # what `torch.onnx.export` is tried with
_INPUTS = ("tokens", "count", "columns")
_TRIED = (2, 6, 6)  # crops, rows and columns that the graph is traced with


def export_selector(
    selector: Selector,
    path: str | Path,
    *,
    grid: Grid | None = None,
    keep: float | int | None = None,
) -> dict[str, Any]:
    """Write `selector` with its rule to `path`; returns what is also written into it.

    path: a new file; .onnx, or .xml for OpenVINO, which puts the weights beside it in a .bin.
    grid and keep: both or neither. With them every shape is fixed: one crop of that grid, `keep` of
        its tokens stay (a share or a number), and the only input is `tokens` (1, L, C). Without,
        crops and lengths are free and the inputs are `tokens` (B, L, C), `count` (how many stay)
        and `columns` (tokens in a row of the grid, 1 for none). Tokens are float32, raw as the
        encoder gives them; the outputs are `kept` (B, K), rising, and `scores` (B, L).

    Raises `UnsupportedError` for weights that no such graph can be made of, `ConfigError` for a
    name that is taken or of another kind, `MissingPackageError` without the extra "export".
    """
    path = check_target(path)
    _check(selector, grid, keep)
    C = selector.config.encoder.width
    told: dict[str, Any] = {
        "tokensieve": __version__,
        "encoder": selector.config.to_dict()["encoder"],
        "rule": selector.config.rule,
    }
    example: tuple[torch.Tensor, ...]
    if grid is None or keep is None:
        B, H, W = _TRIED
        module, example = Selection(selector), (torch.zeros(B, H * W, C), tensor(H), tensor(W))
        sizes: tuple[str | int, ...] = ("crops", "length", "kept")
    else:
        L = grid[0] * grid[1]
        kept = count(keep, L)
        module, example = FixedSelection(selector, grid, kept), (torch.zeros(1, L, C),)
        sizes = (1, L, kept)
        told |= {"grid": list(grid), "count": kept}
    crops, length, left = sizes
    shapes: tuple[list[str | int], ...] = ([crops, length, C], [], [])
    told["inputs"] = dict(zip(_INPUTS, shapes[: len(example)], strict=False))
    told["outputs"] = {"kept": [crops, left], "scores": [crops, length]}
    need("onnx", "export", "of which the file is made")
    need("onnxscript", "export", "by which PyTorch writes ONNX")
    openvino = need("openvino", "export", "whose format that is") if path.suffix == ".xml" else None
    _write(_graph(module.eval(), example, told), path, told, openvino)
    return told


def check_target(path: str | Path) -> Path:
    """`path`, a name no file has yet. Raises `ConfigError` for another."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ConfigError(
            f"Expected a file of a kind {' or '.join(SUFFIXES)} (ONNX, OpenVINO). Got {path}."
        )
    for file in (path, path.with_suffix(".bin") if path.suffix == ".xml" else path):
        if file.exists():
            raise ConfigError(
                f"Expected a new file to write to. Got {file}, which is there already. Name "
                "another or remove it."
            )
    return path


def _check(selector: Selector, grid: Grid | None, keep: float | int | None) -> None:
    """Raise unless a graph of that form can be made of these weights."""
    config = selector.config
    if config.encoder.site is Site.LLM:
        raise UnsupportedError(
            "Expected a selector of encoder features or of embeddings. Got one of hidden states "
            "inside the LLM, behind a question. Train one by `tokensieve extract --site features`."
        )
    if (grid is None) != (keep is None):
        raise ConfigError(
            "Expected `grid` and `keep` together, which fix every shape, or neither. Got only "
            f"{'`keep`' if grid is None else '`grid`'}. Pass both, or neither and hand `count` to "
            "the engine with each picture."
        )
    if grid is None and config.positions != "none":
        raise UnsupportedError(
            f"Expected `grid` and `keep` for weights with positions='{config.positions}', whose "
            "table is made for one grid. Got neither. Pass grid=(24, 24), keep=0.4 (--grid 24x24 "
            "--keep 0.4)."
        )
    if grid is not None and config.encoder.grid not in (None, grid):
        raise ConfigError(
            f"Expected the grid {config.encoder.grid} of the encoder trained for. Got {grid}."
        )


def _graph(module: Selection, example: tuple[torch.Tensor, ...], told: dict[str, Any]) -> Any:
    """The ONNX program."""
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    shapes = (free, None, None) if len(example) > 1 else None
    with _quietly(), torch.no_grad():
        program = torch.onnx.export(
            module, example, dynamo=True, opset_version=OPSET, dynamic_shapes=shapes,
            input_names=[*told["inputs"]], output_names=[*told["outputs"]], verbose=False,
        )  # fmt: skip
    if program is None:
        raise UnsupportedError("Expected a program from torch.onnx.export. Got none.")
    graph = program.model.graph
    graph.name, graph.doc_string = "selector", "Crops' tokens to the indices that stay."
    program.model.metadata_props["tokensieve"] = json.dumps(told)
    for value in (*graph.inputs, *graph.outputs):  # names for readers, in place of the tracer's
        for axis, size in enumerate((told["inputs"] | told["outputs"])[value.name]):
            value.shape[axis] = size
    return program


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporter says of packages it does not find and of its own ways."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _write(program: Any, path: Path, told: dict[str, Any], openvino: Any) -> None:
    """The file, or OpenVINO's two, whole or not at all."""
    with refused_in_words(path), written_folder(path.parent) as part:
        if openvino is None:
            program.save(part / path.name, external_data=False)
            return
        program.save(onnx := part / "graph.onnx", external_data=False)
        model = openvino.convert_model(onnx)
        model.set_rt_info(json.dumps(told), "tokensieve")
        openvino.save_model(model, part / path.name, compress_to_fp16=False)  # float16 ranks anew
        del model
        onnx.unlink()
