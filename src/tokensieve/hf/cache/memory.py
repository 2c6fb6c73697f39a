"""What a KV cache holds of a conversation, noted on the cache itself.

A cache whose prompt was shortened is of no use to a model that knows nothing of it: told the whole
conversation, it would take other tokens for the new ones and count positions wrong. So such a cache
takes nothing in but under a sieve.

B prompts, S prompt length, T length of it shortened, n tokens generated since.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tokensieve.errors import UnsupportedError
from tokensieve.hf.cache.shut import LENT, NOTE
from tokensieve.hf.cache.shut import shut as shut
from tokensieve.hf.cache.shut import unshut as unshut
from tokensieve.hf.encoder.encode import PIXELS
from tokensieve.hf.prompt.compaction import SEQUENCE, Gather

if TYPE_CHECKING:
    from tokensieve.hf.llm.stages import Stages
    from tokensieve.hf.llm.unmerge import Unmerged
    from tokensieve.hf.report import PromptReport

GRIDS = ("image_grid_thw",)  # of each picture; positions with several axes are made of them


@dataclass(frozen=True)
class Memory:
    """What was read into a cache.

    prompt_ids: (B, S) as given. cut: which of them the cache holds; None: all. answer: (B, n) what
    was generated behind them, as far as that is known. renumber: positions count what is held.
    inside: the LLM's layers hold different numbers of tokens. stages: how, to go on by hand.
    sequences, grids: what ran along the prompt, and of each picture; prompt_of: its prompt. crops:
    of each prompt. pixels: of what the processor gave of pictures, how many rows. begun: False of
    a cache that was filled without a sieve, of whose pictures nothing is known.
    """

    model: Any
    prompt_ids: Int[Tensor, "B S"]
    cut: Gather | None
    shortened: bool
    renumber: bool
    answer: Int[Tensor, "B n"] | None = None
    stages: Stages | Unmerged | None = None
    sequences: Mapping[str, Tensor] = field(default_factory=dict)
    grids: Mapping[str, Tensor] = field(default_factory=dict)
    prompt_of: tuple[int, ...] = ()
    crops: Mapping[int, int] = field(default_factory=dict)
    pixels: int = 0
    begun: bool = True

    @classmethod
    def plain(cls, model: Any, ids: Tensor, held: int) -> Memory:
        """Of a cache that was filled without a sieve, as far as the ids given now say."""
        prompt = ids[:, :held] if ids.shape[1] > held else ids.new_zeros(len(ids), held)
        return cls(weakref.ref(model), prompt, None, shortened=False, renumber=False,
                   begun=False)  # fmt: skip

    @classmethod
    def of(
        cls, model: Any, inputs: Mapping[str, Any], ids: Tensor, cut: Gather | None,
        prompts: Sequence[PromptReport], *, shortened: bool, renumber: bool,
    ) -> Memory:  # fmt: skip
        """Of a prompt just read: `ids` as given, of which `cut` is held."""
        pictures = [i for i, prompt in enumerate(prompts) for x in prompt.images if not x.video]
        return cls(
            weakref.ref(model), ids, cut, shortened, renumber,
            sequences=_along(inputs, ids), grids=grids_of(inputs), prompt_of=tuple(pictures),
            crops=_crops(prompts), pixels=_pixels(inputs),
        )  # fmt: skip

    def __deepcopy__(self, memo: dict[int, Any]) -> Memory:
        return self  # nothing of it is ever changed

    def __reduce__(self) -> Any:
        """Nothing of it is written: a cache that holds the whole prompt needs none of it."""
        if self.less:
            raise UnsupportedError(
                "Expected a cache that holds the whole prompt. Got one filled under a sieve, which "
                "holds less and cannot be pickled. Save the conversation instead."
            )
        return type(None), ()

    @property
    def less(self) -> bool:
        """Whether the cache holds less than the prompt."""
        return self.shortened or self.inside

    @property
    def inside(self) -> bool:
        """Whether layers of the cache hold different numbers of tokens, or see them unmerged."""
        return self.stages is not None

    @property
    def gather(self) -> Gather:
        """(B, T) where each position of the cache's prompt comes from."""
        return _all_of(self.prompt_ids) if self.cut is None else self.cut

    @property
    def length(self) -> int:
        """S."""
        return int(self.prompt_ids.shape[1])

    @property
    def short_length(self) -> int:
        """T."""
        return self.length if self.cut is None else int(self.cut.index_BT.shape[1])

    @property
    def pictures(self) -> int:
        """How many pictures were read."""
        return len(self.prompt_of)

    def known(self, past: int) -> Int[Tensor, "B S_n"]:
        """The first `past` tokens of the conversation at most, as far as they are known."""
        ids = self.prompt_ids
        if self.answer is not None and len(self.answer) == len(ids):
            ids = torch.cat([ids, self.answer.to(ids.device)], 1)
        return ids[:, :past]

    def ids(self, past: int) -> Int[Tensor, "B S_n"]:
        """The first `past` tokens of the conversation, 0 where they are not known."""
        known = self.known(past)
        return torch.cat([known, known.new_zeros(len(known), past - known.shape[1])], 1)

    def outgrown(self, inputs: Mapping[str, Any]) -> bool:
        """Whether more pictures are given than were read: perhaps all of the conversation."""
        return _pixels(inputs) > self.pixels

    def followed(self, keep_BS: Bool[Tensor, "B S"], past: int) -> Gather:
        """The conversation as the cache holds its first `past` tokens, and what is kept of the new
        ones behind them."""
        device = keep_BS.device
        between = torch.arange(self.length, past, device=device).expand(len(keep_BS), -1)
        tail = Gather.of(keep_BS[:, past:], left=True)
        index = [self.gather.index_BT.to(device), between, tail.index_BT + past]
        alive = self.gather.real_BT.to(device) & keep_BS.gather(1, index[0])
        real = [alive, keep_BS[:, self.length : past], tail.real_BT]
        return Gather(torch.cat(index, 1), torch.cat(real, 1))

    def with_grids(
        self, inputs: Mapping[str, Any], prompt_of: Sequence[int], new: Sequence[bool]
    ) -> dict[str, Tensor]:
        """Of all pictures of the conversation, by prompt: those read, and those of `inputs` that
        are new."""
        found = {}
        for name in GRIDS:
            if (given := inputs.get(name)) is None:
                continue
            old = self.grids.get(name, given[:0]).to(given.device)
            rows = [(prompt, 0, row) for prompt, row in zip(self.prompt_of, old, strict=False)]
            rows += [
                (prompt, 1, row)
                for prompt, row, is_new in zip(prompt_of, given, new, strict=True)
                if is_new
            ]
            rows.sort(key=lambda row: row[:2])
            found[name] = torch.stack([row for *_, row in rows])
        return found

    def then(
        self, inputs: Mapping[str, Any], gather: Gather, grids: Mapping[str, Tensor],
        prompts: Sequence[PromptReport], *, renumber: bool,
    ) -> Memory:  # fmt: skip
        """Of the conversation with another turn read. prompts: its new pictures."""
        ids, added = inputs["input_ids"], _crops(prompts)
        pictures = [i for i, prompt in enumerate(prompts) for _ in prompt.images]
        return replace(
            self, prompt_ids=ids, cut=gather, renumber=renumber, answer=None,
            shortened=gather.index_BT.shape[1] < ids.shape[1], sequences=_along(inputs, ids),
            grids=grids, prompt_of=tuple(sorted((*self.prompt_of, *pictures))),
            crops={i: self.crops.get(i, 0) + added.get(i, 0) for i in range(len(ids))},
            pixels=max(self.pixels, _pixels(inputs)), begun=True,
        )  # fmt: skip

    def passed(self, inputs: Mapping[str, Any]) -> Memory:
        """Of the conversation with another turn read that was none of ours."""
        ids = inputs["input_ids"]
        return replace(self, prompt_ids=ids, cut=None, answer=None)

    def repeated(self, times: int) -> Memory:
        """With every prompt that often in a row."""
        return self.taken([i for i in range(len(self.prompt_ids)) for _ in range(times)])

    def taken(self, prompts: Sequence[int]) -> Memory:
        """Of `prompts` among these, in this order."""
        if list(prompts) == list(range(len(self.prompt_ids))):
            return self
        of = [(new, k) for new, i in enumerate(prompts)
              for k, prompt in enumerate(self.prompt_of) if prompt == i]  # fmt: skip

        def rows(values: Tensor, order: Sequence[int] = prompts) -> Tensor:
            return values[torch.tensor(order, device=values.device, dtype=torch.long)]

        return replace(
            self,
            prompt_ids=rows(self.prompt_ids),
            cut=None
            if self.cut is None
            else Gather(rows(self.cut.index_BT), rows(self.cut.real_BT)),
            answer=None if self.answer is None else rows(self.answer),
            sequences={name: rows(value) for name, value in self.sequences.items()},
            grids={name: rows(value, [k for _, k in of]) for name, value in self.grids.items()},
            prompt_of=tuple(new for new, _ in of),
            crops={new: self.crops.get(i, 0) for new, i in enumerate(prompts)},
            pixels=self.pixels * len(prompts) // len(self.prompt_ids),
        )


def memory_of(model: Any, cache: Any) -> Memory | None:
    """What is noted on a cache; None if nothing is. Raises `UnsupportedError` where it was another
    model that filled it."""
    found: Memory | None = getattr(cache, NOTE, None)
    if found is not None and found.model() is not model:
        raise UnsupportedError(
            "Expected a cache that this model filled. Got one of another model under a sieve. Pass "
            "the whole conversation and no cache."
        )
    return found


def is_filled(cache: Any) -> bool:
    """Whether there is a cache with something in it."""
    return cache is not None and int(cache.get_seq_length()) > 0


def note(cache: Any, memory: Memory) -> None:
    """Remember on a cache what it holds; one that holds less than the prompt is shut."""
    setattr(cache, NOTE, memory)
    shut(cache)


def read_by_hand(cache: Any, memory: Memory, ids: Tensor | None) -> None:
    """Remember that a noted cache is about to read `ids`; None: of which nothing is known."""
    past = memory.length + int(cache.get_seq_length()) - memory.short_length
    known = memory.known(past)
    answer = known[:, memory.length :]
    if ids is not None and known.shape[1] == past and len(ids) == len(known):
        answer = torch.cat([answer, ids.to(answer.device)], 1)
    setattr(cache, NOTE, replace(memory, answer=answer))


def lend(cache: Any, memory: Memory, call: Any) -> None:
    """Note on a cache what it holds, and shut it but for a call that is at work on it: a weak
    reference to something that dies with it."""
    cache.__dict__[LENT] = call
    note(cache, memory)


def _all_of(ids: Tensor) -> Gather:
    index = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    return Gather(index, torch.ones_like(index, dtype=torch.bool))


def _along(inputs: Mapping[str, Any], ids: Tensor) -> dict[str, Tensor]:
    return {
        name: value
        for name in SEQUENCE
        if name != "labels"
        and isinstance(value := inputs.get(name), Tensor)
        and value.shape == ids.shape
    }


def _crops(prompts: Sequence[PromptReport]) -> dict[int, int]:
    return {i: sum(len(image.crops) for image in p.images) for i, p in enumerate(prompts)}


def grids_of(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: inputs[name] for name in GRIDS if inputs.get(name) is not None}


def _pixels(inputs: Mapping[str, Any]) -> int:
    """How much of pictures is given, in rows of whatever the processor gives."""
    return sum(len(inputs[name]) for name in PIXELS if inputs.get(name) is not None)
