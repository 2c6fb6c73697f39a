"""Why a model has no visual tokens in its prompt, in words."""

from __future__ import annotations

from typing import Any

# families whose config does not say that pictures are read by cross-attention
CROSS = ("mllama", "idefics", "evolla")
QFORMER = ("blip-2", "instructblip", "instructblipvideo")


def why_none(model: Any, takes: bool) -> str | None:
    """Why there are no visual tokens in a model's prompt; None where there are.

    takes: its forward takes what an encoder gave.
    """
    config, kind = model.config, type(model)
    text = getattr(config, "text_config", None) or config
    if getattr(config, "is_encoder_decoder", False):
        return (
            "an encoder-decoder, whose answer reads pictures through cross-attention. There is "
            "nothing in a prompt to drop."
        )
    if config.model_type in CROSS or getattr(text, "cross_attention_layers", None):
        return (
            "whose LLM reads pictures through cross-attention layers: they stand in no prompt. "
            "There is nothing to drop."
        )
    if config.model_type in QFORMER:
        return (
            "whose Q-Former has put each picture into a few query tokens already, and whose own "
            "`generate` wants the pixels. There is nothing to gain."
        )
    has = hasattr(getattr(model, "base_model", model), "get_image_features")
    if takes and has and getattr(config, "image_token_id", None) is not None:
        return None
    home = kind.__module__.partition(".")[0]
    if home not in ("transformers", "tokensieve"):
        return (
            f"a class of '{home}', not one of Transformers. Load a checkpoint converted to those "
            "(often named '-hf'), without remote code, or pass the model that it is around."
        )
    if has and getattr(config, "image_token_id", None) is not None:
        return None
    return "which has no visual tokens."
