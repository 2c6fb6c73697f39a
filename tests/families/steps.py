"""What must hold of tokens dropped inside the encoder, against the tower that was handed all and
drops nothing: its attention just may not look at a patch from the layer on behind which it went.

Where the patches of a token stand in the tower is found by painting tokens and looking at what its
first layer is handed; a token of several patches has, where it is read, the mean of those left in
the place of the others.
"""

from __future__ import annotations

import itertools
import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from families.fewer import check_as_blind, first_rows, painted, positions_of
from families.registry import crops_of, kept_of
from tokensieve.functional.blocks import even_blocks
from tokensieve.hf.families.towers import attention_in, encoder_layers, mergers_of
from tokensieve.hf.sieve import compress, encode
from tokensieve.methods.base import ScoringMethod
from tokensieve.types import Reduction, Site

KEEP = 0.5


@dataclass(frozen=True)
class Norm(ScoringMethod):
    """Keep hidden states of largest norm, as many behind each layer as go evenly."""

    site = Site.ENCODER

    def scores(self, vision, text=None):
        return vision.tokens.float().norm(dim=-1)


@dataclass(frozen=True)
class Absorbing(Norm):
    """The token of largest norm takes in all that go, and is attended to as often."""

    @property
    def weighs_attention(self):
        return True

    def reduce(self, vision, counts, text=None):
        made = super().reduce(vision, counts, text)
        norm = self.scores(vision).masked_fill(~vision.valid_BL, -1)
        own = torch.arange(norm.shape[1]).expand(norm.shape)
        into = torch.where(made.kept, own, norm.argmax(-1, keepdim=True))
        return Reduction(made.kept, assign=into.masked_fill(~vision.valid_BL, -1))


@dataclass(frozen=True)
class Lit:
    """A crop of which all but some tokens are painted."""

    grid: tuple
    valid: torch.Tensor
    kept: torch.Tensor


def tokens_of_rows(model, inputs, crops):
    """(rows,) of the tower the token each shows, counted over all crops; -1 for CLS and padding."""
    plain, ends = first_rows(model, inputs), list(itertools.accumulate(len(c.valid) for c in crops))
    found = torch.zeros(plain.shape[:-1], dtype=torch.long)
    for bit in range(ends[-1].bit_length()):
        lit = []
        for crop, end in zip(crops, ends, strict=True):
            number = torch.arange(end - len(crop.valid), end) + 1
            lit.append(
                Lit(
                    crop.grid, torch.ones_like(crop.valid), (number >> bit & 1 == 0).nonzero()[:, 0]
                )
            )
        found += (first_rows(model, painted(inputs, [lit])) != plain).any(-1).long() << bit
    return found.flatten() - 1


class Blind:
    """A run of the whole tower that may not look at what `Norm` drops. weighs: what `Absorbing`
    takes in is looked at where it went."""

    def __init__(self, tiny, inputs, crops, weighs=False):
        self.weighs = weighs
        self.model, self.layers = tiny.model, list(encoder_layers(tiny.model))
        self.token_R = tokens_of_rows(tiny.model, inputs, crops)
        self.gone_R = torch.zeros(len(self.token_R), dtype=torch.bool)
        self.owner_R = torch.arange(len(self.token_R))
        self.number = {id(attention_in(layer)): i for i, layer in enumerate(self.layers)}
        self.at, end = dict.fromkeys(range(len(self.layers)), 0), 0
        self.crops = []  # rows, whether they reach the LLM, tokens that do
        for crop in crops:
            own = (self.token_R >= end) & (self.token_R < end + len(crop.valid))
            reach = own & crop.valid[(self.token_R - end).clamp(0, len(crop.valid) - 1)]
            self.crops.append((own, reach, int(crop.valid.sum())))
            end += len(crop.valid)
        self.tokens = end
        self.merged = int((self.token_R == self.token_R.max()).sum())
        config = tiny.model.config
        told = getattr(config, "vision_feature_layer", getattr(config, "vision_feature_layers", -1))
        told = told if isinstance(told, list) else [told]
        self.read = [layer - 1 if layer >= 0 else len(self.layers) + layer for layer in told]

    @contextmanager
    def hooked(self):
        own = ALL_ATTENTION_FUNCTIONS["sdpa"]

        def attend(module, query, key, value, attention_mask=None, **kwargs):
            layer = self.number.get(id(module))
            if layer is None:
                return own(module, query, key, value, attention_mask, **kwargs)
            B, _, S, _ = key.shape
            here = slice(self.at[layer], self.at[layer] + B * S)
            self.at[layer] += B * S
            least = torch.finfo(torch.float32).min
            sizes = self.owner_R.bincount(minlength=len(self.owner_R))
            log = sizes.clamp_min(1).float().log()[here] * self.weighs
            bias = log.masked_fill(self.gone_R[here], least).view(B, 1, 1, S)
            bias = bias.expand(-1, 1, query.shape[-2], -1)
            if attention_mask is not None:
                if attention_mask.dtype == torch.bool:
                    zeros = torch.zeros(attention_mask.shape)
                    attention_mask = zeros.masked_fill(~attention_mask, least)
                bias = torch.where(attention_mask < 0, least, bias)
            return own(module, query, key, value, bias, **kwargs)

        ALL_ATTENTION_FUNCTIONS["sdpa"] = attend
        with ExitStack() as stack:
            stack.callback(ALL_ATTENTION_FUNCTIONS.__setitem__, "sdpa", own)
            for i, layer in enumerate(self.layers):
                hook = layer.register_forward_hook(lambda _m, _a, out, i=i: self.behind(i, out),
                                                   prepend=True)  # fmt: skip
                stack.callback(hook.remove)
            for merger in mergers_of(self.model):
                hook = merger.register_forward_pre_hook(
                    lambda _m, args: (self.filled(args[0]), *args[1:])
                )
                stack.callback(hook.remove)
            yield

    def behind(self, block, output):
        hidden = output[0] if isinstance(output, tuple) else output
        if block > max(self.read):
            return None
        norm_R = hidden.reshape(-1, hidden.shape[-1]).norm(dim=-1)
        for own, reach, tokens in self.crops:
            want = int(KEEP * tokens + 0.5) * self.merged
            count = even_blocks(int(reach.sum()), want, max(self.read) + 1, halve=False)[block]
            free = reach & ~self.gone_R
            best = norm_R.masked_fill(~free, -1).topk(count).indices
            self.gone_R |= own
            self.gone_R[best] = False
            if self.weighs and count < int(free.sum()):
                lost = own & self.gone_R[self.owner_R]
                self.owner_R[lost] = int(norm_R.masked_fill(~free, -1).argmax())
        if mergers_of(self.model) or block not in self.read:
            return None
        hidden = self.filled(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def filled(self, hidden):
        """Each patch that is gone as the mean of those left in its token."""
        if self.merged == 1:
            return hidden
        rows = hidden.reshape(-1, hidden.shape[-1]).clone()
        if self.weighs:
            return rows[self.owner_R].view(hidden.shape)
        for token in range(self.tokens):
            own = self.token_R == token
            left = own & ~self.gone_R
            rows[own & self.gone_R] = rows[left].mean(0) if bool(left.any()) else 0.0
        return rows.view(hidden.shape)

    def kept(self):
        """Of each crop its tokens of most patches left, as many as those make up."""
        out, start = [], 0
        for own, _, _ in self.crops:
            tokens = sorted(set(self.token_R[own].tolist()))
            left = {t: int(((self.token_R == t) & ~self.gone_R).sum()) for t in tokens}
            count = math.ceil(sum(left.values()) / self.merged)
            best = sorted(tokens, key=lambda t, left=left: (-left[t], t))[:count]
            out.append(sorted(t - start for t in best))
            start += len(tokens)
        return out


@torch.no_grad()
def check_steps(tiny, pictures=(1, 2), llm=True, weighs=False):
    """What is kept, its rows and the answer are those of a tower that may not look."""
    inputs, method = tiny.inputs(list(pictures)), Absorbing() if weighs else Norm()
    short = compress(tiny.model, inputs, method, KEEP, **positions_of(tiny.model))
    crops = [crop for picture in crops_of(short) for crop in picture]
    blind = Blind(tiny, inputs, crops, weighs)
    with blind.hooked():
        encoded = encode(tiny.model, inputs)
    assert kept_of(short) == blind.kept(), f"other tokens of {tiny.name} are kept"
    check_as_blind(tiny, inputs, short, encoded, llm=llm)
