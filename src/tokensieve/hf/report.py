"""What a sieve did: tokens before and after, kept positions per crop, times.

k kept tokens of a crop, L tokens of a crop.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class CropReport:
    """One crop of a picture.

    grid: (rows, columns) of its tokens, row-major; None where tokens have no grid.
    valid: (L,) False where a token never reaches the LLM, kept or not (padding of the crop).
    kept: (k,) sorted positions that reach the LLM.
    assign: (L,) position of the kept token that absorbed each token, -1 if gone; None: no merging.
    """

    grid: tuple[int, int] | None
    valid: Bool[Tensor, "L"]
    kept: Int[Tensor, "k"]
    assign: Int[Tensor, "L"] | None = None


@dataclass(frozen=True)
class ImageReport:
    """One picture: rows it takes in the prompt before and after, and its crops.

    tokens, kept: all rows, the structural ones (newline rows of LLaVA-NeXT) included.
    structural: newline rows among the `kept`.
    """

    tokens: int
    kept: int
    structural: int
    crops: tuple[CropReport, ...]


@dataclass(frozen=True)
class PromptReport:
    """One prompt of the batch and its pictures, in order."""

    images: tuple[ImageReport, ...]


@dataclass(frozen=True)
class Call:
    """One `generate`, forward or `compress`.

    ms: milliseconds by stage: "encode", "select" and, inside a sieve, "prefill", "decode".
    """

    prompts: tuple[PromptReport, ...]
    ms: dict[str, float] = field(default_factory=dict)

    @property
    def visual_tokens(self) -> int:
        """Visual rows the prompts held before."""
        return sum(image.tokens for prompt in self.prompts for image in prompt.images)

    @property
    def kept_tokens(self) -> int:
        """Visual rows the prompts hold after."""
        return sum(image.kept for prompt in self.prompts for image in prompt.images)


@dataclass
class Report:
    """Everything a sieve did while it was open; grows with every call of the model."""

    method: str
    keep: float | int
    calls: list[Call] = field(default_factory=list)

    @property
    def visual_tokens(self) -> int:
        """Visual rows before, over all calls."""
        return sum(call.visual_tokens for call in self.calls)

    @property
    def kept_tokens(self) -> int:
        """Visual rows after, over all calls."""
        return sum(call.kept_tokens for call in self.calls)

    @property
    def ms(self) -> dict[str, float]:
        """Milliseconds by stage, summed over all calls."""
        total: dict[str, float] = {}
        for call in self.calls:
            for stage, spent in call.ms.items():
                total[stage] = total.get(stage, 0.0) + spent
        return total

    def __str__(self) -> str:
        share = f" ({self.kept_tokens / self.visual_tokens:.0%})" if self.visual_tokens else ""
        times = ", ".join(f"{stage} {spent:.1f} ms" for stage, spent in self.ms.items())
        calls = f"{len(self.calls)} call" + ("" if len(self.calls) == 1 else "s")
        text = (
            f"{self.method} at keep={self.keep}: {self.kept_tokens} of {self.visual_tokens} "
            f"visual tokens{share} in {calls}"
        )
        return f"{text}; {times}" if times else text
