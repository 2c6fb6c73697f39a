"""The text of a prompt about pictures, as the model's processor wants it."""

from __future__ import annotations

from typing import Any


def placeholder_of(processor: Any) -> str:
    """What stands for a picture in the text of a prompt."""
    return getattr(processor, "image_token", None) or "<image>"


def picture_prompt(processor: Any, question: str = "", images: int = 1) -> tuple[str, bool]:
    """The text of a prompt of `images` pictures and `question`, through the chat template if any.

    Also says whether the tokenizer is still to add its special tokens.
    """
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"} for _ in range(images)]
        if question:
            content.append({"type": "text", "text": question})
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
    else:
        text = placeholder_of(processor) * images + f"\n{question}"
    begun = (bos := getattr(processor.tokenizer, "bos_token", None)) and text.startswith(bos)
    return text, not begun


def ask_first(question: str, images: int = 1) -> list[dict[str, Any]]:
    """A conversation of question + image(s) + question, for a processor's `apply_chat_template`.

    A causal LLM reads from left to right: what stands behind a picture cannot change how its tokens
    are read. Text-aware selection ("conditional") needs the question in front; it is repeated
    behind, so that the model answers as it was trained to. Check that your model's chat template
    keeps the order of parts: some put pictures first.

        text = processor.apply_chat_template(ask_first("What is the total?"),
                                             add_generation_prompt=True)
    """
    asked = {"type": "text", "text": question}
    pictures = [{"type": "image"} for _ in range(images)]
    return [{"role": "user", "content": [asked, *pictures, dict(asked)]}]
