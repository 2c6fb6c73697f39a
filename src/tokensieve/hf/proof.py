"""A family without a row in the table shows on its first prompt what a sieve relies on.

Three forwards of the LLM beside the encoder's run: the prompt as given, the same with its rows
handed over, and with half of them dropped; a fourth where those are only blocked. No state of the
model, of caches or of random numbers is changed.

B prompts, S prompt length, T length after, R visual rows of all prompts, V vocabulary.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tokensieve.errors import TokensieveError, UnsupportedError
from tokensieve.hf.encoder.encode import Encoded, encode
from tokensieve.hf.families.positions import mask_of, original_positions
from tokensieve.hf.families.table import family_of, is_listed
from tokensieve.hf.prompt.compaction import Gather, gather_positions
from tokensieve.hf.runtime import hooks
from tokensieve.hf.runtime.compat import shadow_of
from tokensieve.hf.runtime.hooks import Point, When

logger = logging.getLogger("tokensieve")
Shorten = Callable[[Encoded, Tensor], Mapping[str, Any]]  # rows to keep (R,) -> arguments of a call
# how far logits may be apart, as a share of how far they are from their mean
NOISE = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
ATTENTION = ("full_attention", "sliding_attention", "chunked_attention")
_PROVEN: WeakKeyDictionary[Any, set[bool]] = WeakKeyDictionary()
_LOCK = threading.RLock()  # one proof at a time: it runs the model


def is_proven(model: Any, *, renumber: bool) -> bool:
    """Whether `model` may be shortened without a look: its family is listed, or it was proven."""
    return is_listed(model) or renumber in _PROVEN.get(model, ())


def prove(model: Any, encoded: Encoded, shorten: Shorten, *, renumber: bool) -> None:
    """Show on this prompt that a model of an unlisted family reads shortened prompts rightly; once
    for each model.

    Raises `UnsupportedError` that says what failed.
    """
    if is_proven(model, renumber=renumber):
        return
    with _LOCK:
        if is_proven(model, renumber=renumber):
            return
        begun = perf_counter()
        if encoded.output is None:
            encoded = encode(model, encoded.inputs, features=False)
        with _untouched(model) as alone:
            failed, shown = _outcome(_Proof(alone, encoded, shorten, renumber))
        name = f"{type(model).__name__} ('{model.config.model_type}')"
        if failed:
            raise UnsupportedError(
                f"Expected {name}, whose family tokensieve has no row for, to read a shortened "
                f"prompt rightly. Got, on this one: {failed} Use a model of another family, or "
                "trusted=True to go on all the same."
            )
        if shown:
            _PROVEN.setdefault(model, set()).add(renumber)
            spent = perf_counter() - begun
            logger.info("%s proved itself in %.1f s: %s.", name, spent, "; ".join(shown))


def _outcome(proof: _Proof) -> tuple[str, list[str]]:
    """What `run` gives; what the model raises is a failure too."""
    try:
        return proof.run()
    except TokensieveError:
        raise
    except Exception as error:
        return f"{type(error).__name__} in its own code, {error}.", []


class _Proof:
    """The checks on one prompt. alone: the model, on which nothing that is set stays."""

    def __init__(self, alone: Any, encoded: Encoded, shorten: Shorten, renumber: bool) -> None:
        self.model, self.encoded, self.shorten, self.renumber = alone, encoded, shorten, renumber
        self.inputs = encoded.inputs
        self.mask = mask_of(alone, self.inputs)
        self.places = encoded.places
        dtype = alone.dtype if isinstance(alone.dtype, torch.dtype) else torch.bfloat16
        self.noise = NOISE.get(dtype, NOISE[torch.bfloat16])

    def run(self) -> tuple[str, list[str]]:
        """(what failed, or nothing; what was shown)."""
        rows = sum(self.encoded.image_rows)
        width = self.encoded.output["pooler_output"][0].shape[-1]
        embeds = self.model.get_input_embeddings().weight.shape[-1]
        if width != embeds:
            return f"rows of width {width} from its encoder, and {embeds} in its LLM.", []
        plain = self.last({**self.inputs, "attention_mask": self.mask})
        everything = torch.ones(rows, dtype=torch.bool, device=self.mask.device)
        whole = self.shorten(self.encoded, everything)
        if (apart := self.apart(self.last(whole), plain)) > self.noise:
            return (
                f"a prompt that keeps all its tokens is answered otherwise, logits {apart:.0%} "
                "apart: not all that its encoder gives is handed over, or not as it expects.",
                [],
            )
        keep_R = _half(self.encoded.image_rows).to(self.mask.device)
        if bool(keep_R.all()):
            return "", []  # nothing to drop: the next prompt will show it
        short = self.shorten(self.encoded, keep_R)
        prepared = self.prepared(short)
        found, seen = self.listen(prepared)
        if not self.used(prepared, short["position_ids"], short["attention_mask"], seen):
            advice = "" if self.renumber else " positions='renumber' may do."
            return (
                "position ids that it is handed are not those it reads by, so that what is left "
                "would move together." + advice,
                [],
            )
        shown = ["all tokens kept is the model itself", "positions are read as handed over"]
        if self.plain_attention():
            apart = self.apart(found, self.last(self.blocked(whole, keep_R)))
            if apart > self.noise:
                return (
                    f"dropped tokens are not as if they were blocked, logits {apart:.0%} apart: "
                    "rows, positions or masks are not as they stand in the whole prompt.",
                    [],
                )
            shown.append("dropped tokens are as if blocked")
        return "", shown

    def prepared(self, short: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the forward that `generate` would begin with."""
        rest = {k: v for k, v in short.items() if k not in ("input_ids", "labels")}
        made = self.model.prepare_inputs_for_generation(
            short["input_ids"], is_first_iteration=True, **rest
        )
        return {**made, "attention_mask": short["attention_mask"]}

    def blocked(self, whole: Mapping[str, Any], keep_R: Tensor) -> dict[str, Any]:
        """The whole prompt with holes in its mask where rows are not kept."""
        holes = self.mask.bool().masked_scatter(self.places, keep_R) & self.mask.bool()
        positions = original_positions(self.model, self.inputs, self.mask)
        if self.renumber:
            first = positions.amin(-1, keepdim=True)
            positions = (holes.long().cumsum(-1) - 1).clamp(min=0) + first
        else:
            everything = Gather.of(torch.ones_like(holes), left=True)
            positions = gather_positions(
                everything, positions, renumber=False, axes=family_of(self.model).axes
            )
        return {**whole, "attention_mask": holes.to(self.mask.dtype), "position_ids": positions}

    def plain_attention(self) -> bool:
        """Whether a blocked token has no effect: not so in layers with a state or convolutions,
        nor where a window counts it."""
        text = self.model.config.get_text_config()
        kinds = getattr(text, "layer_types", None) or ()
        stateful = any(kind not in ATTENTION for kind in kinds)
        stateful |= getattr(text, "layers_block_type", None) is not None
        sizes = (getattr(text, n, None) for n in ("sliding_window", "attention_chunk_size"))
        windows = [size for size in sizes if isinstance(size, int)]
        return not stateful and self.mask.shape[-1] <= min(windows, default=10**9)

    def listen(self, arguments: Mapping[str, Any]) -> tuple[Tensor, list[Tensor]]:
        """Logits, and the position ids that rotary embeddings were called with."""
        seen: list[Tensor] = []

        def note(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            told = kwargs.get("position_ids", args[1] if len(args) > 1 else None)
            if isinstance(told, Tensor) and not told.is_floating_point():
                seen.append(told)

        rotary = [m for m in self.model.modules() if "Rotary" in type(m).__name__]
        with hooks.acting({Point(module, When.BEFORE): note for module in rotary}):
            return self.last(arguments), seen

    def used(
        self, prepared: Mapping[str, Any], handed: Tensor, mask_BT: Tensor, seen: list[Tensor]
    ) -> bool:
        """Whether the ids handed over reached the forward and what turns queries and keys."""
        given = prepared.get("position_ids")
        fitting = [ids for ids in seen if ids.shape[-1] == handed.shape[-1]]
        if given is not None:
            fitting.append(given)
        elif not fitting or not self.renumber:
            return False
        return all(_same(ids, handed, mask_BT) for ids in fitting)

    def last(self, arguments: Mapping[str, Any]) -> Tensor:
        """(B, V) logits behind each prompt's last token."""
        kind: Any = type(self.model)
        names = inspect.signature(kind.forward).parameters
        left_out = ("labels", "use_cache", "cache", "past_key_values", "return_dict")
        given = {k: v for k, v in arguments.items() if k in names and k not in left_out}
        mask_BS = arguments["attention_mask"]
        ends = bool(mask_BS[:, -1].bool().all())
        if "logits_to_keep" in names and ends:
            given["logits_to_keep"] = 1
        out = kind.forward(self.model, **given, use_cache=True, return_dict=True).logits
        if ends:
            return torch.as_tensor(out[:, -1].float())
        S = mask_BS.shape[-1]
        at = (torch.arange(S, device=mask_BS.device) * mask_BS).argmax(-1).to(out.device)
        return torch.as_tensor(out[torch.arange(len(out), device=out.device), at].float())

    def apart(self, got: Tensor, wanted: Tensor) -> float:
        """How far logits are apart, as a share of how far they are from their mean; the worst."""
        spread = (wanted - wanted.mean(-1, keepdim=True)).norm(dim=-1)
        share = (got - wanted).norm(dim=-1) / spread.clamp(min=1e-12)
        return float(share.nan_to_num(nan=torch.inf).max())


def _half(rows: list[int]) -> Tensor:
    """(R,) of each picture two rows of three; all of one that has one row."""
    return torch.cat([(torch.arange(n) % 3 != 1) | (n == 1) for n in rows])


def _same(ids: Tensor, handed: Tensor, mask_BT: Tensor) -> bool:
    """Equal where a token is, less a first row (of one more) that only says what is packed. All
    positions of a prompt may be moved alike: only distances are read."""
    if ids.ndim == 3 and handed.ndim == 3 and len(handed) == len(ids) + 1:
        handed = handed[1:]
    off = ids - handed.to(ids.device)  # (B, T), or axes in front
    real = mask_BT.bool().to(ids.device).expand_as(off)
    prompts = zip(off.movedim(-2, 0), real.movedim(-2, 0), strict=True)
    return all(bool((one[there] == one[there][0]).all()) for one, there in prompts)


@contextmanager
def _untouched(model: Any) -> Iterator[Any]:
    """The model in evaluation, under another identity, so that what a forward sets on it is gone
    afterwards; without gradients, and with random numbers put back."""
    training = [module for module in model.modules() if module.training]
    device = torch.device(model.device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad(), hooks.apart():
        for module in training:
            module.training = False
        try:
            yield shadow_of(model)
        finally:
            for module in training:
                module.training = True
