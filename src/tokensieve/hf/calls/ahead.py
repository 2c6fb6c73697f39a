"""What the calls under a plan are going to hook, put on once for all of them.

A call would put on by itself what is not there. While other threads run the model, though, its
lists of hooks had better not change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from tokensieve.hf.attention import tap
from tokensieve.hf.encoder.fewer import patch_points
from tokensieve.hf.encoder.run import step_points
from tokensieve.hf.families.table import decoder_of, family_of, projector_of
from tokensieve.hf.families.towers import attention_in, encoder_layers, require_uncompiled
from tokensieve.hf.llm.inside import Listening
from tokensieve.hf.llm.stage import Stage
from tokensieve.hf.plan import Plan
from tokensieve.hf.runtime import hooks
from tokensieve.hf.runtime.compat import require_layer
from tokensieve.hf.runtime.hooks import Point, When
from tokensieve.types import Site


@contextmanager
def installed(model: Any, plan: Plan) -> Iterator[None]:
    """While open, calls under `plan` find their hooks on the modules of `model`."""
    points: list[Point] = []
    taps: list[Any] = []
    if (projector := projector_of(model, family_of(model))) is not None:
        points.append(Point(projector, When.BEFORE))
    if plan.signals(model):
        layers = encoder_layers(model)
        taps += [attention_in(layers[signal.block]) for signal in plan.signals(model)
                 if signal.block is not None and -1 < signal.block < len(layers)]  # fmt: skip
    if (plan.before or plan).method.site is Site.ENCODER:
        points += step_points(model)
        taps += [attention_in(layer) for layer in encoder_layers(model)]
    if (plan.before or plan).method.site is Site.PATCHES:
        points += [point for point, _ in patch_points(model)]
    if plan.method.unmerges:
        decoder = decoder_of(model)
        require_uncompiled(decoder, model.base_model)
        points.append(Point(decoder, When.BEFORE))
        taps += [attention_in(layer) for layer in decoder.layers]
    if plan.stages:
        decoder = decoder_of(model)
        require_uncompiled(decoder, model.base_model)
        heard = Listening(decoder, {stage.layer: stage.signals for stage in plan.stages})
        points += [*_stage_points(decoder, plan.stages), *heard.actions]
        taps += heard.rotated
    taps = [module for module in taps if module is not None]
    with ExitStack() as stack:
        stack.enter_context(_uncompiled(model, [*(point.module for point in points), *taps]))
        stack.enter_context(hooks.installed(points))
        stack.enter_context(tap.installed(taps))
        yield


@contextmanager
def _uncompiled(model: Any, hooked: Iterable[nn.Module]) -> Iterator[None]:
    """While open, what `module.compile()` compiled runs as written where there are hooks in it:
    compiled code does not look again which there are."""
    ours = {id(model), *map(id, hooked)}
    name = "_compiled_call_impl"
    plain = [
        module
        for module in model.modules()
        if getattr(module, name, None) and any(id(part) in ours for part in module.modules())
    ]
    with ExitStack() as stack:
        for module in plain:
            with hooks.locked():
                hooks.mount(module).set(name, None)
            stack.callback(hooks.mount(module).unset, name)
        yield


def _stage_points(decoder: Any, stages: Sequence[Stage]) -> list[Point]:
    """Where the cuts of `stages` hook the decoder."""
    layers = decoder.layers
    for layer in layers:
        require_layer(layer)
    first = min(stage.layer for stage in stages)
    cut = [Point(layer, When.BEFORE) for layer in layers[first:]]
    return [Point(decoder, When.BEFORE), *cut, Point(layers[-1], When.AFTER)]
