"""What lmms-eval finds by the entry point `lmms_eval.models`."""

from __future__ import annotations

from typing import Any


def manifests() -> list[Any]:
    """The model "tokensieve", of lmms-eval's chat interface."""
    from lmms_eval.models.registry_v2 import ModelManifest

    path = "tokensieve.evaluate.lmms.model.Tokensieve"
    return [ModelManifest(model_id="tokensieve", chat_class_path=path)]
