"""A question about pictures and videos, made into a model's inputs by its processor."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from PIL import Image
from transformers.utils.import_utils import is_torchvision_available

from tokensieve import fields
from tokensieve.data.pictures.decode import PictureNote
from tokensieve.data.sources.clips import Video
from tokensieve.errors import (
    MissingPackageError,
    PictureError,
    PromptError,
    UnsupportedError,
    brief,
)
from tokensieve.hf.families.table import FAMILIES
from tokensieve.hf.models.loaded import Loaded
from tokensieve.hf.prompt.template import picture_prompt, placeholder_of
from tokensieve.hf.runtime.devices import input_device

Shown = Image.Image | Video
Pictures = Shown | Sequence[Shown]


def listed(pictures: Pictures) -> list[Any]:
    """Pictures and videos as a list, where one may stand for itself: as prompts hold them, the
    pictures first."""
    several = list(pictures) if isinstance(pictures, list | tuple) else [pictures]
    return sorted(several, key=lambda one: isinstance(one, Video))


def prepared(loaded: Loaded, pictures: Pictures, question: str, *, in_front: bool = False) -> Any:
    """The processor's output for one question about the pictures, on the model's device.

    in_front: the question stands before the pictures, and behind them again.

    Raises `PictureError` for what is no picture, `PromptError` for a question that is empty or
    holds a placeholder, `UnsupportedError` for several pictures where the chat template takes one
    and for a video where the model takes none, `MissingPackageError` for a video where its
    processor lacks torchvision.
    """
    processor, model = loaded.processor, loaded.model
    several = listed(pictures)
    videos = [one for one in several if isinstance(one, Video)]
    stills = several[: len(several) - len(videos)]
    for picture in stills if videos or stills else [None]:
        if not isinstance(picture, Image.Image) or 0 in picture.size:
            raise PictureError(
                f"Expected a picture as a PIL.Image. Got {fields.shown(picture)}. Open it: "
                "tokensieve.data.pictures.decode.open_picture(path), or Image.fromarray(array)."
            )
    if not isinstance(question, str) or not question.strip():
        got = "an empty one" if isinstance(question, str) else fields.shown(question)
        raise PromptError(f"Expected a question. Got {got}. Ask something of the picture, as text.")
    if videos:
        check_takes_videos(loaded)
    for kind in ("image", "video") if videos else ("image",):
        if (placeholder := placeholder_of(processor, kind)) in question:
            raise PromptError(
                f"Expected a question without the placeholder {placeholder}: it is put in by "
                "itself. Leave it out."
            )
    text, special = _prompt(loaded, question, (len(stills), len(videos)), in_front)
    given = {**({"images": stills} if stills else {}), **(_of_videos(videos) if videos else {})}
    inputs = processor(text=[text], return_tensors="pt", add_special_tokens=special, **given)
    return inputs.to(input_device(model), dtype=model.dtype)


def _of_videos(videos: Sequence[Video]) -> dict[str, Any]:
    """What a processor is told of videos whose frames have been chosen, and of their times."""
    told = []
    for video in videos:
        count, fps = len(video.frames), video.fps
        width, height = video.frames[0].size
        at = [round(second * 1000) for second in video.seconds]  # in thousandths of a second
        told.append({
            "total_num_frames": max(at[-1] + 1, round(1000 * count / fps)), "fps": 1000.0,
            "duration": count / fps, "frames_indices": at, "width": width, "height": height,
        })  # fmt: skip
    return {
        "videos": [list(video.frames) for video in videos],
        "video_metadata": told,
        "do_sample_frames": False,
    }


def check_takes_videos(loaded: Loaded) -> None:
    """Raise `UnsupportedError` unless the model's family and its processor take videos, and
    `MissingPackageError` where that lacks torchvision."""
    processor, kind = loaded.processor, loaded.model.config.model_type
    names: list[str] = getattr(type(processor), "get_attributes", list)()
    if getattr(processor, "video_processor", None) is not None:
        return
    if "video_processor" in names and not is_torchvision_available():
        raise MissingPackageError(
            f"Expected torchvision, through which {type(processor).__name__} of '{loaded.name}' "
            "reads videos. Got none. Install the one for your torch: pip install torchvision."
        )
    known = ", ".join(name for name, row in FAMILIES.items() if row.frames is not None)
    raise UnsupportedError(
        f"Expected a model that takes videos ({known}, and those that read frames as pictures). "
        f"Got '{loaded.name}' ({kind}), which takes none. Ask about its frames as pictures: "
        "tokensieve ask FRAME FRAME QUESTION."
    )


def _prompt(
    loaded: Loaded, question: str, counts: tuple[int, int], in_front: bool
) -> tuple[str, bool]:
    """The prompt's text of so many pictures and videos. Raises `UnsupportedError` where not all of
    them come to stand in it."""
    several, asked = counts != (1, 0), dict(zip(("image", "video"), counts, strict=True))
    each = {kind: _one(loaded, question, kind, in_front) for kind, n in asked.items() if n}
    if not several:
        return each["image"]
    shown: dict[str, int] = {}
    try:
        text, special = picture_prompt(loaded.processor, question, *counts, in_front=in_front)
        shown = {kind: text.count(placeholder_of(loaded.processor, kind)) for kind in each}
        got = f"a template that shows {' and '.join(map(str, shown.values()))}"
    except Exception as error:  # a template is a stranger's program and raises anything
        text, special, got = "", False, brief(error)
    wanted = {
        kind: asked[kind] * one[0].count(placeholder_of(loaded.processor, kind))
        for kind, one in each.items()
    }
    if shown != wanted or not text or wanted.get("video") == 0:
        names = {"image": "pictures", "video": "videos"}
        what = " and ".join(f"{asked[kind]} {names[kind]}" for kind in each)
        raise UnsupportedError(
            f"Expected a chat template that takes {what} in '{loaded.name}'. Got {got}. Ask about "
            "each by itself."
        )
    if loaded.name.startswith("nano"):
        warnings.warn(
            f"'{loaded.name}' learned from one picture at a time; of several it reads less well.",
            PictureNote,
            stacklevel=2,
        )
    return text, special


def _one(loaded: Loaded, question: str, kind: str, in_front: bool) -> tuple[str, bool]:
    """The prompt's text of one picture, or one video."""
    counts = (1, 0) if kind == "image" else (0, 1)
    try:
        return picture_prompt(loaded.processor, question, *counts, in_front=in_front)
    except Exception:
        if kind == "image":
            raise
        return "", False
