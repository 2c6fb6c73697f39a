"""What the calls under a plan are going to hook, put on once for all of them.

A call would put on by itself what is not there. While other threads run the model, though, its
lists of hooks had better not change.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tokensieve.hf import hooks, tap
from tokensieve.hf.families import decoder_of, family_of, projector_of
from tokensieve.hf.hooks import Point, When
from tokensieve.hf.inside import Listening
from tokensieve.hf.plan import Plan
from tokensieve.hf.stages import stage_points
from tokensieve.hf.towers import attention_in, encoder_layers
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
        for layer in encoder_layers(model):
            attention = attention_in(layer)
            points += [Point(layer, When.AFTER), Point(layer, When.BEFORE)]
            if attention is not None:
                points.append(Point(attention, When.BEFORE))
                taps.append(attention)
    if plan.stages:
        decoder = decoder_of(model)
        heard = Listening(decoder, {stage.layer: stage.signals for stage in plan.stages})
        points += [*stage_points(decoder, plan.stages), *heard.actions]
        taps += heard.rotated
    with ExitStack() as stack:
        stack.enter_context(hooks.installed(points))
        stack.enter_context(tap.installed([module for module in taps if module is not None]))
        yield
