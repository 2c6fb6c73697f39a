"""The text of a prompt about one picture, as the model's processor wants it."""

from __future__ import annotations

from typing import Any


def placeholder_of(processor: Any) -> str:
    """What stands for a picture in the text of a prompt."""
    return getattr(processor, "image_token", None) or "<image>"


def picture_prompt(processor: Any, question: str = "") -> tuple[str, bool]:
    """The text of a prompt of one picture and `question`, through the chat template if any.

    Also says whether the tokenizer is still to add its special tokens.
    """
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}]
        if question:
            content.append({"type": "text", "text": question})
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
    else:
        text = f"{placeholder_of(processor)}\n{question}"
    begun = (bos := getattr(processor.tokenizer, "bos_token", None)) and text.startswith(bos)
    return text, not begun
