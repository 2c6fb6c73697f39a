"""Prompts that a method inside the LLM can make use of."""

from __future__ import annotations

from typing import Any


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
