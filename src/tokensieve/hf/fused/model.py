"""LLaVA with a projector that fuses tokens: all but the projector is Transformers' own code."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, LlavaForConditionalGeneration, LlavaModel
from transformers.models.llava.modeling_llava import LlavaPreTrainedModel

from tokensieve.hf.fused.config import FusedLlavaConfig
from tokensieve.hf.fused.depths import skipping
from tokensieve.hf.fused.question import asking
from tokensieve.hf.fused.weights import check_loaded
from tokensieve.hf.runtime.compat import cache_of
from tokensieve.nn.depths import Routers
from tokensieve.nn.fusion import FusionProjector


def drawn_projector(config: FusedLlavaConfig) -> FusionProjector:
    """An untrained projector of `config`, which begins with the highest of its blocks alone."""
    projector = FusionProjector(config.fusion)
    if projector.blocks is not None:
        projector.blocks.pass_through(config.topmost)
    return projector


def drawn_routers(config: FusedLlavaConfig, seed: int) -> Routers | None:
    """Untrained routers of `config`; None where no token skips a layer."""
    if config.depths is None:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Routers(config.depths)


class _Checked(LlavaPreTrainedModel):  # type: ignore[no-untyped-call]
    """Loads weights only if they are those of its projector."""

    config: FusedLlavaConfig
    config_class = FusedLlavaConfig

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in Transformers, but a projector is never left as it was drawn, and no code of a
        checkpoint is run.

        Raises `WeightsError` where the checkpoint's projector is missing or of another shape.
        """
        lenient = kwargs.pop("ignore_mismatched_sizes", False)
        told = kwargs.pop("output_loading_info", False)
        kwargs.pop("trust_remote_code", None)  # this class is all the code there is
        loaded: Any = super().from_pretrained(
            *args,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
            **kwargs,
        )
        model, info = loaded
        check_loaded(model, info, lenient=lenient)
        return (model, info) if told else model


class FusedLlavaModel(_Checked, LlavaModel):  # type: ignore[no-untyped-call]
    """Encoder, `FusionProjector` and LLM, without the LLM's output layer.

    The encoder's hidden states that `config.vision_feature_layer` names are put side by side on
    the channels, without CLS, and handed to `multi_modal_projector`. routers: which visual tokens
    skip a layer of the LLM, by `config.depths`; None: no token does.
    """

    def __init__(self, config: FusedLlavaConfig) -> None:
        super(LlavaModel, self).__init__(config)  # LlavaModel's own would build LLaVA's projector
        models: Any = AutoModel  # untyped in Transformers
        projector: Any = drawn_projector(config)
        routers: Any = drawn_routers(config, 0)
        for part in (projector, routers):  # Transformers would draw them anew, too small to learn
            for module in [] if part is None else part.modules():
                module._is_hf_initialized = True
        self.vision_tower = models.from_config(config.vision_config, trust_remote_code=False)
        self.multi_modal_projector = projector
        self.routers = routers
        self.language_model = models.from_config(config.text_config, trust_remote_code=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As Transformers', with visual tokens that skip layers where there are routers."""
        if self.routers is None:
            return super().forward(*args, **kwargs)
        told = inspect.signature(LlavaModel.forward).bind_partial(self, *args, **kwargs).arguments
        told |= told.pop("kwargs", {})
        ids, mask = told.get("input_ids"), told.get("attention_mask")
        with skipping(
            self.language_model, self.routers, ids, self.config.image_token_id, mask, cache_of(told)
        ):
            return super().forward(*args, **kwargs)


class FusedLlavaForConditionalGeneration(  # type: ignore[no-untyped-call]
    _Checked, LlavaForConditionalGeneration
):
    """A LLaVA whose LLM reads fused tokens, `config.image_seq_length` of a picture.

    `generate`, `save_pretrained`, gradient checkpointing and the rest are Transformers' own. After
    `tokensieve.hf.fused.register()` its Auto classes know it.
    """

    def __init__(self, config: FusedLlavaConfig) -> None:
        super(LlavaForConditionalGeneration, self).__init__(config)  # nor a second LLM
        self.model = FusedLlavaModel(config)
        text = config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    @wraps(LlavaForConditionalGeneration.forward)
    def forward(  # type: ignore[override]  # as `wraps` types it
        self, *args: Any, **kwargs: Any
    ) -> Any:
        """As Transformers', with the question told to a projector that chooses by it."""
        signature = inspect.signature(LlavaForConditionalGeneration.forward)
        with self.asking(signature.bind_partial(self, *args, **kwargs).arguments):
            return super().forward(*args, **kwargs)

    @wraps(LlavaForConditionalGeneration.generate)
    def generate(self, inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As Transformers', whose newer releases encode pictures ahead of the first forward."""
        told = kwargs if inputs is None else {**kwargs, "input_ids": inputs}
        with torch.no_grad(), self.asking(told):
            return super().generate(inputs, *args, **kwargs)

    def asking(self, inputs: Mapping[str, Any]) -> AbstractContextManager[None]:
        """While open, pictures of `inputs` are encoded for the question beside them, where the
        projector chooses by it ("quecc"). Raises `PromptError`, `UnsupportedError`."""
        return asking(self.model, inputs)

    def freeze_encoder(self) -> None:
        """Keep the encoder's weights out of training, as the published recipe does."""
        self.model.vision_tower.requires_grad_(False)
