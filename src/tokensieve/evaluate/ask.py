"""Ask a model about a picture with fewer visual tokens, and say what it cost.

The use case behind `tokensieve ask` and the demo.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tokensieve import fields
from tokensieve.budget import check_keep
from tokensieve.cost.flops import decode_flops_by_layer, prefill_flops_by_layer
from tokensieve.cost.kv import kv_bytes
from tokensieve.cost.shapes import TransformerShape
from tokensieve.errors import ConfigError, PictureError, PromptError, UnsupportedError
from tokensieve.fields import check_fields, option
from tokensieve.files import written_whole
from tokensieve.hf.models.loaded import Loaded
from tokensieve.hf.prompt.template import picture_prompt, placeholder_of
from tokensieve.hf.report import Call, ImageReport
from tokensieve.hf.runtime.devices import input_device
from tokensieve.hf.sieve import sieve
from tokensieve.methods.registry import method_class
from tokensieve.types import Site
from tokensieve.viz.compare import Shown, overlay_rows
from tokensieve.viz.sheet import sheet

STAGES = ("encode", "select", "prefill", "decode")


@dataclass(frozen=True)
class Settings:
    """How to ask: what `sieve` takes, and how long the answer may be.

    keep: a fraction, or the most tokens a picture keeps (pool="prompt": a prompt).
    options: fields of methods (`seed`, `weights`, ...); each method gets those it has.
    """

    keep: float | int = 0.4
    positions: str = "keep"
    pool: str = "crop"
    max_new_tokens: int = option(64, low=1)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_keep(self.keep)
        check_fields(self)


@dataclass(frozen=True)
class Answer:
    """An answer and what it took.

    keep: as asked, 1.0 for "full" and 0.0 for "none".
    kept_tokens: visual tokens the LLM's last layer holds.
    prompt_tokens: what the LLM's first layer read, text and visual; new_tokens: what it wrote.
    kv_bytes: of the cache when the last token was written.
    llm_flops: prefill and decode, two per multiply-add; flops: the same by stage. Where the formula
        does not know the LLM (a mixture of experts, say), None and nothing, as are kv_bytes.
    ms: milliseconds by stage.
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
    image: ImageReport | None = field(default=None, repr=False)

    def as_json(self) -> dict[str, Any]:
        """Everything but the kept positions, ready for `json.dumps`."""
        fields = asdict(replace(self, image=None))
        del fields["image"]
        return fields


def ask(
    loaded: Loaded, picture: Image.Image, question: str, method: str, settings: Settings
) -> Answer:
    """The model's answer to `question` about `picture`, read through `method`.

    Raises `UnknownNameError` for the method, `BudgetError` for the keep, `PromptError` for a
    question that is empty or holds an image placeholder, and whatever the sieve raises.
    """
    if not isinstance(loaded, Loaded) or not isinstance(settings, Settings):
        raise ConfigError(
            "Expected what `load_model` returns, and `Settings`. Got a "
            f"{type(loaded).__name__} and a {type(settings).__name__}. Pass load_model('nano')."
        )
    chosen = method_class(method)
    if chosen.site is Site.LLM and chosen.trained:
        raise UnsupportedError(
            f"Expected a method that needs no training for one LLM. Got '{method}', which needs "
            "the question in front of the picture too. Use it from Python: tokensieve.sieve with "
            "prompts of tokensieve.hf.prompt.template.ask_first."
        )
    keep = {"full": 1.0, "none": 0.0}.get(method, check_keep(settings.keep))
    options = {k: v for k, v in settings.options.items() if k in chosen.__dataclass_fields__}
    inputs = prepared(loaded, picture, question)
    before = inputs["input_ids"].shape[1]
    with (
        torch.inference_mode(),
        sieve(
            loaded.model, method, keep or 1.0,
            positions=settings.positions, pool=settings.pool, **options,
        ) as report,
    ):  # fmt: skip
        output = loaded.model.generate(
            **inputs, max_new_tokens=settings.max_new_tokens, do_sample=False
        )
    new = output[0, before:]
    text = before - report.visual_tokens
    images = [image for call in report.calls for row in call.prompts for image in row.images]
    return Answer(
        answer=loaded.processor.decode(new, skip_special_tokens=True).strip(),
        model=loaded.name,
        method=method,
        keep=keep,
        visual_tokens=report.visual_tokens,
        kept_tokens=report.kept_tokens,
        prompt_tokens=text + report.calls[0].tokens_by_layer(1)[0],
        new_tokens=len(new),
        ms={stage: round(report.ms.get(stage, 0.0), 3) for stage in STAGES},
        image=images[0] if images else None,
        **_cost(loaded.model, text, report.calls[0], len(new)),
    )


def run(
    loaded: Loaded,
    picture: Image.Image,
    question: str,
    methods: Sequence[str],
    settings: Settings,
) -> list[Answer]:
    """One answer a method, each method once, in the order given.

    Where there are several, a throw-away run goes first, so that none pays for the first call.
    """
    once = list(dict.fromkeys(methods))
    if len(once) > 1:
        ask(loaded, picture, question, "full", replace(settings, max_new_tokens=2))
    return [ask(loaded, picture, question, method, settings) for method in once]


def shown(answer: Answer) -> Shown:
    """The panel of `answer` on an overlay sheet."""
    tokens = f"{answer.kept_tokens} of {answer.visual_tokens} tokens"
    return Shown(answer.method, (tokens, f"Answer: {answer.answer or '(nothing)'}"), answer.image)


def write_overlay(
    path: Path, processor: Any, picture: Image.Image, question: str, answers: Sequence[Answer]
) -> None:
    """Write a picture of what each answer's method kept to `path`, whole or not at all.

    Raises `UnsupportedError` for a processor of unknown crops, `ConfigError` for the path.
    """
    rows = overlay_rows(processor, picture, [shown(answer) for answer in answers])
    with written_whole(path) as part:
        sheet(rows, heading=question).save(part)


def prepared(loaded: Loaded, picture: Image.Image, question: str) -> Any:
    """The processor's output for one picture and one question, on the model's device.

    Raises `PromptError` for a question that is empty or holds the image placeholder.
    """
    processor, model = loaded.processor, loaded.model
    if not isinstance(picture, Image.Image) or 0 in picture.size:
        raise PictureError(
            f"Expected a picture as a PIL.Image. Got {fields.shown(picture)}. Open it: "
            "tokensieve.data.pictures.decode.open_picture(path), or Image.fromarray(array)."
        )
    if not isinstance(question, str) or not question.strip():
        got = "an empty one" if isinstance(question, str) else fields.shown(question)
        raise PromptError(f"Expected a question. Got {got}. Ask something of the picture, as text.")
    placeholder = placeholder_of(processor)
    if placeholder in question:
        raise PromptError(
            f"Expected a question without the placeholder {placeholder}: it is put in by itself. "
            "Leave it out."
        )
    text, special = picture_prompt(processor, question)
    inputs = processor(
        images=[picture], text=[text], return_tensors="pt", add_special_tokens=special
    )
    return inputs.to(input_device(model), dtype=model.dtype)


def _cost(model: Any, text: int, call: Call, new: int) -> dict[str, Any]:
    """Of a prompt of `text` tokens beside the visual ones, of which each layer holds its own."""
    try:
        shape = TransformerShape.of_llm(model.config)
    except UnsupportedError:
        return {"kv_bytes": None, "llm_flops": None, "flops": {}}
    prompts = [text + visual for visual in call.tokens_by_layer(shape.layers)]
    flops = {
        "prefill": prefill_flops_by_layer(shape, prompts),
        "decode": decode_flops_by_layer(shape, prompts, new),
    }
    single, cached = replace(shape, layers=1), max(0, new - 1)
    return {
        "kv_bytes": sum(kv_bytes(single, prompt + cached, model.dtype) for prompt in prompts),
        "llm_flops": sum(flops.values()),
        "flops": flops,
    }
