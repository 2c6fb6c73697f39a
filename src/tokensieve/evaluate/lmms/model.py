"""The model "tokensieve" of lmms-eval: any model of Transformers, read through a method.

    lmms-eval --model tokensieve --tasks chartqa --batch_size 8 \
        --model_args pretrained=llava-hf/llava-v1.6-vicuna-7b-hf,method=divprune,keep=0.22

Public benchmarks come through its chat interface; what they ask and how they score is theirs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from tokensieve.budget import parse_keep
from tokensieve.data.extras import need
from tokensieve.data.sources.clips import Video, open_video
from tokensieve.errors import InputError, UnsupportedError
from tokensieve.evaluate.ask import BASELINES, Settings
from tokensieve.evaluate.options import named_methods, read_options
from tokensieve.evaluate.prepare import prepared
from tokensieve.fields import shown
from tokensieve.hf.load import load_model
from tokensieve.hf.models.loaded import Loaded
from tokensieve.hf.runtime.devices import input_device
from tokensieve.hf.sieve import sieve

LONGEST = 64  # tokens of an answer where the task says nothing
Messages = Sequence[Mapping[str, Any]]
_Interface: Any = need("lmms_eval.api.model", "eval", "to run public benchmarks").lmms


class Tokensieve(_Interface):  # type: ignore[misc]  # lmms-eval says no types
    """Arguments of --model_args.

    pretrained: as of `tokensieve ask --model`. method, keep, positions, pool: as of `sieve`.
    frames: of a video, at most so many. dtype, device: as of `ask`. Others are options of the
    method.

    Raises what `load_model`, `Settings` and `sieve` raise.
    """

    is_simple = False

    def __init__(
        self, pretrained: str = "nano", method: str = "selector", keep: Any = 0.4,
        dtype: str = "auto", device: str | None = None, batch_size: Any = 1, **more: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        named_methods(method)
        front = {name: more.pop(name) for name in ("positions", "pool") if name in more}
        own = {"weights": more.pop("weights")} if "weights" in more else {}
        self._method, self._frames = method, int(more.pop("frames", 8))
        texts = [f"{name}={value}" for name, value in more.items()]
        plan, by_method = read_options(texts, [method])
        share = parse_keep(str(keep)) if method not in BASELINES else 1.0
        self._keep = BASELINES.get(method, share)
        self._settings = Settings(share, options=own, by_method=by_method, **front, **plan)
        self.loaded: Loaded = load_model(pretrained, dtype, _device(device))
        self._batch = int(batch_size)
        self.tokens: list[tuple[int, int]] = []  # of each prompt: visual tokens kept, and all

    @property
    def batch_size(self) -> int:
        """Prompts at once."""
        return self._batch

    @property
    def device(self) -> Any:
        """Where inputs go."""
        return input_device(self.loaded.model)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers in the order of the requests; those with equal settings go in batches."""
        said: list[str] = [""] * len(requests)
        for numbers, told in self._batches(requests):
            answers = self._answers([self._messages(requests[n]) for n in numbers], told)
            for number, answer in zip(numbers, answers, strict=True):
                said[number] = answer
                self.cache_hook.add_partial(
                    "generate_until", (requests[number].args[0], told), answer
                )
        return said

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not to be had. Raises `UnsupportedError`."""
        raise UnsupportedError(
            "Expected a task of output_type generate_until. Got one that asks for likelihoods. "
            "Take the task's generating form."
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not to be had. Raises `UnsupportedError`."""
        raise UnsupportedError(
            "Expected a task of one question a picture. Got one of several rounds. Take another."
        )

    def _batches(self, requests: Sequence[Any]) -> Iterator[tuple[list[int], dict[str, Any]]]:
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            told = json.dumps(request.args[2], sort_keys=True, default=str)
            alike.setdefault(told, []).append(number)
        for numbers in alike.values():
            for start in range(0, len(numbers), self._batch):
                some = numbers[start : start + self._batch]
                yield some, dict(requests[some[0]].args[2])

    def _messages(self, request: Any) -> Messages:
        """What the task shows of its document."""
        _, of_document, _, number, task, split = request.args
        messages: Messages = of_document(self.task_dict[task][split][number])
        return messages

    def _answers(self, several: Sequence[Messages], told: Mapping[str, Any]) -> list[str]:
        inputs = self._inputs(several)
        before = inputs["input_ids"].shape[1]
        plan = self._settings.plan(self._method)
        sampled = bool(told.get("do_sample")) and float(told.get("temperature") or 0) > 0
        drawn = {"temperature": float(told["temperature"])} if sampled else {}
        with (
            torch.no_grad(),
            sieve(self.loaded.model, self._method, self._keep or 1.0, **plan) as report,
        ):
            made = self.loaded.model.generate(
                **inputs, do_sample=sampled, num_beams=int(told.get("num_beams") or 1),
                max_new_tokens=int(told.get("max_new_tokens") or LONGEST), **drawn,
            )  # fmt: skip
        for prompt in report.calls[0].prompts:
            rows = [(image.kept, image.tokens) for image in prompt.images]
            self.tokens.append((sum(kept for kept, _ in rows), sum(all_ for _, all_ in rows)))
        texts = self.loaded.processor.batch_decode(made[:, before:], skip_special_tokens=True)
        return [_until(text, told.get("until")) for text in texts]

    def _inputs(self, several: Sequence[Messages]) -> Any:
        """One padded batch; videos go one prompt at a time, through the room of `ask`."""
        shown_ = [_media(messages) for messages in several]
        if any(videos for _, videos in shown_):
            if len(several) > 1:
                raise UnsupportedError(
                    f"Expected videos one prompt at a time. Got a batch of {len(several)}. Pass "
                    "--batch_size 1."
                )
            images, videos = shown_[0]
            clips = [v if isinstance(v, Video) else open_video(v, self._frames) for v in videos]
            return prepared(self.loaded, [*images, *clips], _question(several[0]))
        processor = self.loaded.processor
        processor.tokenizer.padding_side = "left"
        texts = [processor.apply_chat_template(_plain(m), add_generation_prompt=True)
                 for m in several]  # fmt: skip
        bos = getattr(processor.tokenizer, "bos_token", None)
        inputs = processor(
            images=[images for images, _ in shown_] if any(i for i, _ in shown_) else None,
            text=texts, padding=True, return_tensors="pt",
            add_special_tokens=not (bos and texts[0].startswith(bos)),
        )  # fmt: skip
        return inputs.to(self.device, dtype=self.loaded.model.dtype)


def _device(name: str | None) -> str | None:
    """lmms-eval hands on "cuda" where nothing is said; without one it is left to `load_model`."""
    return None if name in (None, "", "cuda") and not torch.cuda.is_available() else name


def _parts(messages: Messages) -> Iterator[Mapping[str, Any]]:
    for message in messages:
        yield from message["content"]


def _media(messages: Messages) -> tuple[list[Image.Image], list[Any]]:
    """Pictures and videos in order. Raises `UnsupportedError` for sound."""
    images, videos = [], []
    for part in _parts(messages):
        if part["type"] == "image":
            if not isinstance(part["url"], Image.Image):
                raise InputError(
                    f"Expected a picture as a PIL.Image in a message. Got {shown(part['url'])}. "
                    "Open it in the task's doc_to_messages."
                )
            images.append(part["url"].convert("RGB"))
        elif part["type"] == "video":
            videos.append(part["url"])
        elif part["type"] != "text":
            raise UnsupportedError(
                f"Expected pictures, videos and text. Got {part['type']}. Take another task."
            )
    return images, videos


def _question(messages: Messages) -> str:
    return "\n".join(part["text"] for part in _parts(messages) if part["type"] == "text")


def _plain(messages: Messages) -> list[dict[str, Any]]:
    """The messages for a chat template: pictures by their places alone."""
    return [
        {
            "role": message["role"],
            "content": [
                {"type": "image"} if part["type"] == "image" else dict(part)
                for part in message["content"]
            ],
        }
        for message in messages
    ]


def _until(text: str, stops: str | Sequence[str] | None) -> str:
    for stop in [stops] if isinstance(stops, str) else stops or ():
        text = text.partition(stop)[0] if stop else text
    return text.strip()
