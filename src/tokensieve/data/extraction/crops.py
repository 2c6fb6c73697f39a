"""A frozen encoder that turns pictures into crops of tokens, as its VLM would see them.

n crops of a picture, L tokens of a crop, C width.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tokensieve.data.store.shards import NONFINITE, Crop, as_bytes
from tokensieve.errors import ConfigError, NonFiniteError, UnsupportedError, brief
from tokensieve.hf.encoder.encode import Encoded, encode
from tokensieve.hf.encoder.pixels import crop_pixels
from tokensieve.hf.families.fingerprint import (
    encoder_hash,
    encoder_info,
    llm_info,
    state_hash,
    tower_hashes,
)
from tokensieve.hf.families.layout import Packing
from tokensieve.hf.families.table import decoder_of, first_cut
from tokensieve.hf.llm.states import hidden_states
from tokensieve.hf.models.loaded import Loaded
from tokensieve.hf.prompt.reduce import site_tokens
from tokensieve.hf.prompt.template import picture_prompt
from tokensieve.hf.runtime.devices import input_device
from tokensieve.types import EncoderInfo, Site

_SAMPLE = "What is this?"  # a question to try a model with


class CropEncoder:
    """`prepare` runs in any thread, `crops` in the one that owns the model.

    site: "features", "embeds" or "llm". dtype: what tokens are stored as. pixels: keep each crop's
    too. layer: of the site "llm", the decoder layer that the tokens enter, the question before the
    picture.

    Raises `ConfigError` for another site, layer or dtype, `UnsupportedError` for a model that does
    not offer the site, whose pixels cannot be kept, or whose chat template cannot show a question
    before the picture.
    """

    def __init__(
        self, loaded: Loaded, site: Site, dtype: torch.dtype, *, pixels: bool,
        layer: int | None = None,
    ) -> None:  # fmt: skip
        if site not in (Site.FEATURES, Site.EMBEDS, Site.LLM):
            raise ConfigError(f"Expected the site 'features', 'embeds' or 'llm'. Got '{site}'.")
        self._layer = _layer_of(loaded.model, layer) if site is Site.LLM else 0
        self._model, self._site, self._dtype, self._pixels = loaded.model, site, dtype, pixels
        self._processor, self._own = loaded.processor, threading.local()
        self._text, self._special = picture_prompt(loaded.processor)
        self.prompt = self._asked(_SAMPLE) if site is Site.LLM else None
        if pixels:
            _normalisation(loaded.processor)
        self.info = self._probed()

    def _probed(self) -> EncoderInfo:
        """The encoder's fingerprint, checked on a grey picture, so that errors come at once."""
        info = encoder_info(self._model)
        info = info.at_embeds() if self._site is Site.EMBEDS else info
        info = llm_info(self._model, self._layer) if self._site is Site.LLM else info
        grey = Image.new("RGB", (64, 64), "grey")
        try:
            inputs = self.prepare([grey], [_SAMPLE])
        except Exception as error:
            said = brief(error)
            raise UnsupportedError(
                "Expected a processor that takes one picture and its placeholder. Got "
                f"{type(self._processor).__name__}, which says: {said}. Check the model's files."
            ) from error
        (crops,) = self.crops(inputs, ["a grey picture"])
        if isinstance(crops, NonFiniteError):
            raise crops
        width = crops[0].tokens.shape[-1]
        if self._site is Site.FEATURES and width != info.width:
            raise UnsupportedError(
                f"Expected features of width {info.width}, as the config of "
                f"{type(self._model).__name__} says. Got {width}. Use --site embeds."
            )
        return replace(info, width=width)

    def weights(self) -> str:
        """Short hash of the weights that make the tokens; at the site "llm" of all weights."""
        whole = self._site is Site.LLM
        return state_hash(self._model) if whole else encoder_hash(self._model)

    def tower(self) -> dict[str, str]:
        """Hashes, by dtype, of the parameters that make the tokens of this site; none for "llm"."""
        if self._site is Site.LLM:
            return {}
        return dict(tower_hashes(self._model, self._site))

    def processing(self) -> dict[str, Any]:
        """The image processor's settings."""
        settings = json.loads(self._processor.image_processor.to_json_string())
        return {key: value for key, value in settings.items() if value is not None}

    def _asked(self, question: str) -> str:
        """The prompt of a question before its picture, and behind it."""
        return picture_prompt(self._processor, question, in_front=True)[0]

    def prepare(
        self, pictures: Sequence[Image.Image], questions: Sequence[str] = ()
    ) -> dict[str, Any]:
        """The model's inputs, one prompt a picture; safe to call from several threads.

        questions: one a picture, read at the site "llm" only.

        Raises whatever the processor raises on a picture it refuses.
        """
        if not hasattr(self._own, "processor"):  # tokenizers cannot be shared by threads
            self._own.processor = deepcopy(self._processor)
            tokenizer = self._own.processor.tokenizer
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token
        texts = [self._text] * len(pictures)
        if self._site is Site.LLM:
            texts = [self._asked(question) for question in questions]
        inputs = self._own.processor(
            images=[[picture] for picture in pictures], text=texts,
            return_tensors="pt", padding=True, add_special_tokens=self._special,
        )  # fmt: skip
        return dict(inputs)

    def prepare_each(
        self, pictures: Sequence[Image.Image], questions: Sequence[str] = ()
    ) -> tuple[list[tuple[list[int], dict[str, Any]]], dict[int, str]]:
        """Inputs of all pictures together or, where the processor refuses one, of each alone.

        Returns (indices, inputs) of each call, and what is wrong with each refused picture.
        """
        every = list(range(len(pictures)))
        if not every:
            return [], {}
        try:
            return [(every, self.prepare(pictures, questions))], {}
        except Exception:  # processors raise anything on a picture that is too thin, too small, ...
            calls, refused = [], {}
        for i in every:
            try:
                calls.append(([i], self.prepare([pictures[i]], questions[i : i + 1])))
            except Exception as error:
                said = brief(error)
                refused[i] = f"Expected a picture that the processor takes. Got: {said}."
        return calls, refused

    @torch.inference_mode()
    def crops(
        self, inputs: dict[str, Any], labels: Sequence[str]
    ) -> list[list[Crop] | NonFiniteError]:
        """The crops of each picture, on the CPU, as they are stored; or why they cannot be.

        Raises `UnsupportedError` for the site.
        """
        model = self._model
        moved = {
            key: _moved(value, input_device(model), model.dtype) for key, value in inputs.items()
        }
        encoded = encode(model, moved)
        done: list[list[Crop] | NonFiniteError] = []
        if self._site is Site.LLM:
            tokens: Sequence[Tensor] = hidden_states(model, encoded, self._layer)
        else:
            tokens = site_tokens(model, self._site, encoded)
        pixels = self._crop_pixels(encoded)
        parts = zip(encoded.prompt_of, encoded.packings, tokens, pixels, strict=True)
        for prompt, group in groupby(parts, key=lambda part: part[0]):
            found: list[Crop] = []
            try:
                for _, packing, tokens_nLC, images in group:
                    stored = self._stored(tokens_nLC, labels[prompt])
                    found += _cut(packing, stored, images)
            except NonFiniteError as error:
                done.append(error)
            else:
                done.append(found)
        return done

    def _stored(self, tokens_nLC: Tensor, label: str) -> Tensor:
        stored = tokens_nLC.to(self._dtype)
        if bool(torch.isfinite(stored).all()):
            return stored.cpu()
        if bool(torch.isfinite(tokens_nLC).all()):
            advice = "float16 cannot hold them: use --dtype bfloat16"
        else:
            advice = "the model overflows or its weights are broken: use --compute bfloat16"
        raise NonFiniteError(
            f"{NONFINITE}{self._site} of {label}. Got NaN or Inf; {advice}, or take the "
            "picture out."
        )

    def _crop_pixels(self, encoded: Encoded) -> list[Tensor] | list[None]:
        """(n, 3, H, V) bytes of each picture of the encoder's input, its normalisation undone."""
        if not self._pixels:
            return [None] * len(encoded.packings)
        values = encoded.inputs.get("pixel_values")
        if values is None or values.ndim not in (4, 5):
            raise UnsupportedError(
                f"Expected crops of pixels. Got {type(self._model).__name__}, whose processor "
                "cuts pictures into patches of its own. Extract without --pixels."
            )
        mean, std = _normalisation(self._processor)
        done = []
        for crops in crop_pixels(encoded.inputs, encoded.packings):
            shape = (3, 1, 1)
            plain = crops.float() * std.to(crops.device).view(shape)
            plain = plain + mean.to(crops.device).view(shape)
            done.append(as_bytes(plain).cpu())
        return done


def _layer_of(model: Any, layer: int | None) -> int:
    """`layer`, if the LLM can be cut there. Raises `ConfigError`, `UnsupportedError`."""
    least, last = first_cut(model), len(decoder_of(model).layers) - 1
    if not isinstance(layer, int) or not least <= layer <= last:
        raise ConfigError(
            f"Expected a decoder layer of {type(model).__name__} from {least} to {last} for the "
            f"site 'llm'. Got {layer}. Pass --layer K."
        )
    return layer


def _cut(packing: Packing, tokens_nLC: Tensor, images: Tensor | None) -> list[Crop]:
    """The crops of a picture."""
    valid_nL = packing.valid_nL.cpu()
    whole = bool(valid_nL.all())
    return [
        Crop(
            tokens_nLC[i],
            packing.grid,
            None if whole else valid_nL[i],
            None if images is None else images[i],
        )
        for i in range(packing.crops)
    ]


def _moved(value: Any, device: Any, dtype: torch.dtype) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)


def _normalisation(processor: Any) -> tuple[Tensor, Tensor]:
    """(mean, std) of each colour. Raises `UnsupportedError` if the processor does not say."""
    images = processor.image_processor
    mean, std = getattr(images, "image_mean", None), getattr(images, "image_std", None)
    if not getattr(images, "do_normalize", True):
        return torch.zeros(3), torch.ones(3)
    if mean is None or std is None or len(mean) != 3:
        raise UnsupportedError(
            f"Expected an image processor with the mean and std of three colours. Got "
            f"{type(images).__name__}. Extract without --pixels."
        )
    return torch.tensor(mean), torch.tensor(std)
