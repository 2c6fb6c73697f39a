"""Prompts with some positions taken out: every tensor that runs along them is gathered.

B prompts, S prompt length, T length after, R visual rows of all prompts, D LLM width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tokensieve.hf.prompt.text import TEXT_MASK

# along the sequence, beside ids, mask and positions; value: what a padded place holds
SEQUENCE = {
    "token_type_ids": 0, "mm_token_type_ids": 0, "moe_mm_token_type_ids": 0, "labels": -100,
    TEXT_MASK: 0,
}  # fmt: skip


# in the output of an encoder: along its rows, or of no use to the LLM
_ROWS = (
    "pooler_output", "deepstack_features", "last_hidden_state", "hidden_states", "attentions",
)  # fmt: skip


@dataclass(frozen=True)
class Gather:
    """Where each position of the shortened prompts comes from; padding on the side it was on."""

    index_BT: Int[Tensor, "B T"]
    real_BT: Bool[Tensor, "B T"]

    @classmethod
    def of(cls, keep_BS: Bool[Tensor, "B S"], *, left: bool) -> Gather:
        """Gather the True positions of `keep_BS`, padded on the left or the right."""
        S, T = keep_BS.shape[1], int(keep_BS.sum(-1).max())
        places = torch.arange(S, device=keep_BS.device)
        far = -1 if left else S
        index = torch.where(keep_BS, places, far).sort(-1).values
        index = index[:, S - T :] if left else index[:, :T]
        real = (index >= 0) & (index < S)
        return cls(index.clamp(0, S - 1), real)

    def take(self, values: Tensor, fill: int) -> Tensor:
        """`values` (..., B, S) gathered to (..., B, T), `fill` at padded places."""
        shape = (*values.shape[:-1], self.index_BT.shape[-1])
        taken = values.gather(-1, self.index_BT.expand(shape))
        return taken.masked_fill(~self.real_BT, fill)


def pads_left(mask_BS: Tensor) -> bool:
    """Whether prompts are padded on the left; True where nothing is padded."""
    return bool(mask_BS[:, -1].bool().all()) or not bool(mask_BS[:, 0].bool().all())


def gather_positions(gather: Gather, positions: Tensor, *, renumber: bool, axes: int = 3) -> Tensor:
    """Position ids (B, S) or (axes + 1, B, S) of the shortened prompts.

    A row 0 beside the axes only tells the attention mask what is packed: it counts without gaps.
    """
    B = len(gather.index_BT)
    taken = gather.take(positions.expand(*positions.shape[:-2], B, positions.shape[-1]), 0)
    counted = (gather.real_BT.cumsum(-1) - 1).clamp(min=0)
    if taken.ndim == 3 and len(taken) == axes + 1:
        taken = taken.clone()
        taken[0] = counted.to(taken.dtype)
    elif taken.ndim == 2 and renumber:
        first = positions.amin(-1, keepdim=True)  # 0, or 1 for PaliGemma
        taken = (counted + first).masked_fill(~gather.real_BT, 0)
    return taken


def gather_sequences(
    gather: Gather, inputs: Mapping[str, Any], shape: torch.Size
) -> dict[str, Any]:
    """Every tensor of `inputs` that runs along the prompt, shortened."""
    return {
        key: gather.take(inputs[key], fill)
        for key, fill in SEQUENCE.items()
        if isinstance(inputs.get(key), Tensor) and inputs[key].shape == shape
    }


@dataclass(frozen=True)
class Rows:
    """Shortened rows of every entry of the encoder's output, and how to hand them to the model.

    items: (rows, D) per entry; prompt_of: its prompt; deepstack: the same per layer, beside what
    stood with each layer in the output. kinds: "image" or "video" of each entry; forms: of each
    kind its output's class, and whether that holds its entries as one tensor. rest: what pictures'
    output holds that is no rows (Ovis2's indicators).
    """

    items: tuple[Tensor, ...]
    prompt_of: tuple[int, ...]
    deepstack: tuple[tuple[Any, tuple[Tensor, ...]], ...] | None
    kinds: tuple[str, ...]
    forms: Mapping[str, tuple[type, bool]]
    rest: Mapping[str, Any]

    @classmethod
    def of(
        cls, output: Any, keep_R: Tensor, rows_RD: Tensor | None, prompt_of: Sequence[int]
    ) -> Rows:
        """Cut the encoder's `output` to the rows in `keep_R`, with values `rows_RD` if given.

        An entry that loses all its rows leaves the output: the model counts entries.
        """
        pooled = output["pooler_output"]
        kinds, forms = getattr(output, "kinds", None), getattr(output, "forms", None)
        if kinds is None or forms is None:
            kinds = ["image"] * len(pooled)
            forms = {"image": (type(output), isinstance(pooled, Tensor))}
        cut = _cut(pooled, keep_R, rows_RD)
        left = [i for i, item in enumerate(cut) if len(item)]
        deepstack = None
        if (layers := output.get("deepstack_features")) is not None:
            deepstack = tuple(_cut_layer(layer, keep_R, left) for layer in layers)
        return cls(
            tuple(cut[i] for i in left),
            tuple(prompt_of[i] for i in left),
            deepstack,
            tuple(kinds[i] for i in left),
            forms,
            _rest(output),
        )

    def outputs(self, repeats: int = 1) -> dict[str, Any]:
        """`mm_encoder_outputs` for the model: a fresh output of each kind."""
        return {kind: self.output(repeats, kind) for kind in self.forms if kind in self.kinds}

    def output(self, repeats: int = 1, kind: str = "image") -> Any:
        """Of one kind, each prompt's entries `repeats` times in a row (beams)."""
        output_type, tensor = self.forms[kind]
        order = [
            i
            for prompt in sorted(set(self.prompt_of))
            for _ in range(repeats)
            for i, owner in enumerate(self.prompt_of)
            if owner == prompt and self.kinds[i] == kind
        ]
        items = [self.items[i] for i in order]
        fields: dict[str, Any] = {"pooler_output": _hold(items) if tensor else items}
        if kind == "image":
            fields |= self.rest
        if self.deepstack is not None:
            fields["deepstack_features"] = [
                [rows[i] for i in order] if tag is None else (tag, [rows[i] for i in order])
                for tag, rows in self.deepstack
            ]
        return output_type(**fields)


def _rest(output: Any) -> dict[str, Any]:
    """What pictures' output holds beside rows; nothing where videos stand among them."""
    entries = output.items() if isinstance(output, Mapping) else ()
    return {k: v for k, v in entries if k not in _ROWS and v is not None}


def _hold(items: list[Tensor]) -> Tensor:
    """As one tensor."""
    same = len({len(item) for item in items}) == 1
    return torch.stack(items) if same else torch.cat(items)[None]


def _cut(entries: Any, keep_R: Tensor, rows_RD: Tensor | None = None) -> list[Tensor]:
    flat = [entry.reshape(-1, entry.shape[-1]) for entry in entries]
    sizes = [len(entry) for entry in flat]
    if rows_RD is not None:
        flat = list(torch.split(rows_RD, sizes))
    if bool(keep_R.all()):
        return flat
    masks = torch.split(keep_R.to(flat[0].device), sizes)
    return [entry[mask] for entry, mask in zip(flat, masks, strict=True)]


def _cut_layer(layer: Any, keep_R: Tensor, left: list[int]) -> tuple[Any, tuple[Tensor, ...]]:
    """One layer of deepstack features; some families put the layer's number in front."""
    tag, entries = (None, layer) if isinstance(layer[0], Tensor) else layer
    cut = _cut(entries, keep_R)
    return tag, tuple(cut[i] for i in left)
