"""The text of a prompt about pictures and videos, as the model's processor wants it."""

from __future__ import annotations

from typing import Any

from tokensieve.errors import UnsupportedError, brief


def placeholder_of(processor: Any, kind: str = "image") -> str:
    """What stands for a picture, or a video, in the text of a prompt."""
    return getattr(processor, f"{kind}_token", None) or f"<{kind}>"


def picture_prompt(
    processor: Any, question: str = "", images: int = 1, videos: int = 0, *, in_front: bool = False
) -> tuple[str, bool]:
    """The text of a prompt of so many pictures, then videos, and `question`, through the chat
    template if any.

    in_front: the question stands before the pictures too, as `ask_first` says.
    Also says whether the tokenizer is still to add its special tokens.

    Raises `UnsupportedError` for a template that cannot show the question in front.
    """
    if in_front:
        text = _asked_first(processor, question, images, videos)
    elif getattr(processor, "chat_template", None):
        content = _shown(images, videos)
        if question:
            content.append({"type": "text", "text": question})
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
    else:
        text = _placeholders(processor, images, videos) + f"\n{question}"
    begun = (bos := getattr(processor.tokenizer, "bos_token", None)) and text.startswith(bos)
    return text, not begun


def _shown(images: int, videos: int) -> list[dict[str, str]]:
    return [{"type": "image"} for _ in range(images)] + [{"type": "video"} for _ in range(videos)]


def _placeholders(processor: Any, images: int, videos: int) -> str:
    return placeholder_of(processor) * images + placeholder_of(processor, "video") * videos


def ask_first(question: str, images: int = 1, videos: int = 0) -> list[dict[str, Any]]:
    """A conversation of question + image(s), video(s) + question, for a processor's
    `apply_chat_template`.

    A causal LLM reads from left to right: what stands behind a picture cannot change how its tokens
    are read. Text-aware selection ("conditional") needs the question in front; it is repeated
    behind, so that the model answers as it was trained to. Some chat templates put pictures first
    whatever the order of parts (LLaVA's); `picture_prompt(..., in_front=True)` sees to those too.

        text = processor.apply_chat_template(ask_first("What is the total?"),
                                             add_generation_prompt=True)
    """
    asked = {"type": "text", "text": question}
    return [{"role": "user", "content": [asked, *_shown(images, videos), dict(asked)]}]


def _asked_first(processor: Any, question: str, images: int, videos: int) -> str:
    """Question + images + question. Where the chat template puts pictures first, their placeholders
    are part of the text it is given."""
    written = f"{question}\n{_placeholders(processor, images, videos)}\n{question}"
    if not getattr(processor, "chat_template", None):
        return written
    whole = [{"role": "user", "content": [{"type": "text", "text": written}]}]
    got = "one that puts pictures first"
    for talk in (ask_first(question, images, videos), whole):
        try:
            text = processor.apply_chat_template(talk, add_generation_prompt=True)
        except Exception as error:  # a template is a stranger's program and raises anything
            got = brief(error)
            continue
        parts = text.split(question.strip())
        if len(parts) == 3 and parts[1].strip():
            return str(text)
    raise UnsupportedError(
        f"Expected a chat template that shows the question, the picture and the question again. "
        f"Got {got}. Ask without the question in front (no --ask-first)."
    )
