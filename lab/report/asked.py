"""A page with a question, as the processor hands it to the model: what times are taken on."""

from __future__ import annotations

from typing import Any

from tokensieve.evaluate.score import prompt
from tokensieve.evaluate.subject import Subject
from tokensieve.evaluate.tasks import SYNTH, World


def picture_inputs(
    subject: Subject, ordinal: int, kind: str = "cluttered", world: World = SYNTH
) -> dict[str, Any]:
    """What the processor makes of a page of the validation split and a question."""
    picture = world.draw(kind, ordinal, "val")
    text = prompt(subject.processor, picture.questions[0].text)
    return dict(subject.processor(images=[picture.image], text=[text], return_tensors="pt"))
