"""What a model said through a method, and what it took; or why a method was refused."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tokensieve.hf.report import ImageReport

SHORT_ANSWER = 24  # tokens: read off a picture; prose has unlikely tokens, whatever was seen


@dataclass(frozen=True)
class Answer:
    """An answer and what it took.

    keep: as asked, 1.0 for "full" and 0.0 for "none".
    kept_tokens: visual tokens the LLM's last layer holds.
    prompt_tokens: what the LLM's first layer read, text and visual; new_tokens: what it wrote.
    kv_bytes: of the cache when the last token was written.
    llm_flops: prefill and decode, two per multiply-add; flops: the same by stage, and under
        "selection" those of a trained selector's network. Where the formula does not know the LLM
        (a mixture of experts, say), None and nothing, as are kv_bytes.
    ms: milliseconds by stage.
    sure: probability of the answer's least likely token, in [0, 1].
    images: what was kept of each picture.
    """

    answer: str
    model: str
    method: str
    keep: float | int
    visual_tokens: int
    kept_tokens: int
    prompt_tokens: int
    new_tokens: int
    kv_bytes: int | None
    llm_flops: int | None
    flops: dict[str, int]
    ms: dict[str, float]
    sure: float
    images: tuple[ImageReport, ...] = field(default=(), repr=False)

    @property
    def unsure(self) -> bool:
        """Whether a short answer has a token less likely than all others together: what a model
        says of text that it could not read."""
        return self.sure < 0.5 and self.new_tokens <= SHORT_ANSWER

    def as_json(self) -> dict[str, Any]:
        """Everything but the kept positions, ready for `json.dumps`."""
        fields = asdict(replace(self, images=()))
        del fields["images"]
        return fields


@dataclass(frozen=True)
class Refused:
    """A method that does not fit what was asked, and why, in one line."""

    method: str
    reason: str

    def as_json(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        return {"method": self.method, "error": self.reason}
