"""Blocks of an encoder or an LLM: which one a place in the depth is, what is left behind each."""

from __future__ import annotations

from tokensieve.errors import BudgetError


def blocks_run(place: float, depth: int, *, most: int | None = None) -> int:
    """How many of `depth` blocks have run at `place`, a share of the depth: from 1 to `most`.

    The one rule by which layers of a paper move with the depth: what stands at n of N blocks there
    stands at round(n / N * depth) here (a half to the even number). A cut at place p comes before
    the block of that number, counted from 0; an attention read at p is of the block one before.
    """
    return min(max(round(place * depth), 1), depth if most is None else most)


def even_blocks(length: int, keep: int, blocks: int, *, halve: bool = True) -> list[int]:
    """As many tokens go behind every layer, `keep` of `length` left behind the last of `blocks`.

    halve: no layer takes more than half of what it is handed, so for few tokens the first layers
    take more than the last.

    Raises `BudgetError` where halving at every layer does not get down to `keep`.
    """
    if halve:
        _require_reachable(length, keep, blocks)
    counts = []
    for block in range(blocks):
        even = length - (length - keep) * (block + 1) // blocks
        counts.append(min(even, keep * 2 ** (blocks - 1 - block)) if halve else even)
    return counts


def staged_blocks(length: int, keep: int, blocks: int, stages: int) -> list[int]:
    """The same share goes behind each of `stages` layers evenly between the first and the last.

    Of twelve layers and three stages these are the fourth, seventh and tenth. With fewer layers
    than stages there is a stage behind each layer.
    """
    at = sorted({min(blocks * stage // (stages + 1), blocks - 1) for stage in range(1, stages + 1)})
    counts, left = [], length
    for block in range(blocks):
        if block in at:
            share = (at.index(block) + 1) / len(at)
            left = max(keep, round(length * (keep / length) ** share))
        counts.append(keep if block >= at[-1] else left)
    return counts


def _require_reachable(length: int, keep: int, blocks: int) -> None:
    least = -(-length // 2**blocks)
    if keep < least:
        raise BudgetError(
            f"Expected `keep` of at least {least} of {length} tokens of a crop: at most half of "
            f"them are merged behind each of the encoder's {blocks} layers. Got {keep}. Keep more."
        )
