"""Throughput and time to the first token of vLLM's server under load, with fewer and fewer tokens.

python -m lab.serving.load [--layers 4 --width 512 --requests 32] [--out FILE.json]

A LLaVA-NeXT of random weights: 5 crops of 24 x 24 patches, so 2,880 visual tokens a picture and
the newlines. One server answers every line of the table; each request says what it keeps and brings
a picture nobody sent before, so that no cache helps.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lab import command
from lab.serving.server import NAME, data_url, serving
from tokensieve import files
from tokensieve.assets import asset_path
from tokensieve.files import write_text
from tokensieve.serving.folder import write_folder

KEEPS, CONCURRENT = (1.0, 0.4, 0.2), (1, 4, 16, 32)
SIDE, PATCH, NEW = 336, 14, 8  # pixels of a crop and of a patch; tokens of an answer
ARGUMENTS = ("--trust-request-mm-kwargs", "--max-model-len", "4096", "--no-enable-prefix-caching")


def main(arguments: list[str] | None = None) -> None:
    """Serve, load, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--requests", type=int, default=32, help="in each line, at least")
    parser.add_argument("--method", default="feature-norm")
    parser.add_argument("--folder", type=Path, default=Path("out/serving/load"))
    parser.add_argument("--out", type=Path, help="a record, as JSON")
    options = command.parse(parser, arguments)
    model(options.folder, options.width, options.layers)
    setting = {"method": options.method, "keep": 1.0, "least": 0.1}
    rows = []
    with serving(options.folder, setting, options.folder / "server.log", *ARGUMENTS) as address:
        asyncio.run(measured(address, 1, 1.0, 1))  # warm
        print("| at once | keep | requests a second | first token, median | 99 of 100 |")
        print("| --: | --: | --: | --: | --: |")
        for at_once in CONCURRENT:
            for keep in KEEPS:
                number = max(options.requests, at_once)
                rows.append(asyncio.run(measured(address, at_once, keep, number)))
                print(LINE.format(**rows[-1]), flush=True)
    if options.out:
        config = {key: str(value) for key, value in vars(options).items()}
        record = {"config": config, "machine": files.machine(), "rows": rows}
        write_text(options.out, json.dumps(record, indent=1))


LINE = "| {at_once} | {keep:g} | {rate:.2f} | {median:.2f} s | {p99:.2f} s |"


def model(folder: Path, width: int, layers: int) -> None:
    """Write a LLaVA-NeXT with random weights, its words those of the embedded model."""
    import transformers as tf

    heads, pinpoints = width // 64, [[2 * SIDE, 2 * SIDE]]
    tokenizer = tf.AutoTokenizer.from_pretrained(asset_path("nano"), trust_remote_code=False)
    text = {
        "hidden_size": width,
        "intermediate_size": 11 * width // 4,
        "vocab_size": len(tokenizer),
    }
    text |= {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
    }
    image: Any = tokenizer.convert_tokens_to_ids("<image>")
    vision = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 4, "image_size": SIDE, "patch_size": PATCH}
    config = tf.LlavaNextConfig(
        text_config={"model_type": "llama", "max_position_embeddings": 4096, **text},
        vision_config={"model_type": "clip_vision_model", "projection_dim": 64, **vision},
        image_token_index=image, image_grid_pinpoints=pinpoints,
        tie_word_embeddings=False,
    )  # fmt: skip
    crop: dict[str, Any] = {"size": {"shortest_edge": SIDE}}
    crop["crop_size"] = {"height": SIDE, "width": SIDE}
    processor_of: Any = tf.LlavaNextProcessor  # untyped
    processor = processor_of(
        tf.LlavaNextImageProcessorPil(image_grid_pinpoints=pinpoints, **crop), tokenizer,
        patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=(asset_path("nano") / "chat_template.jinja").read_text(),
    )  # fmt: skip
    torch.manual_seed(0)
    write_folder(tf.LlavaNextForConditionalGeneration(config), processor, folder)


async def measured(address: str, at_once: int, keep: float, number: int) -> dict[str, Any]:
    """One line: so many requests, at most `at_once` of them under way."""
    from openai import AsyncOpenAI

    told = {"base_url": address, "api_key": "none", "max_retries": 0, "timeout": 3600}
    gate, firsts = asyncio.Semaphore(at_once), list[float]()
    bodies = [messages(picture(f"{at_once} {keep} {i}")) for i in range(number)]

    async def one(client: Any, body: Sequence[dict[str, Any]]) -> None:
        async with gate:
            begun, seen = time.perf_counter(), False
            stream = await client.chat.completions.create(
                model=NAME, messages=body, temperature=0, max_completion_tokens=NEW, stream=True,
                extra_body={"ignore_eos": True, "skip_special_tokens": False,
                            "mm_processor_kwargs": {"tokensieve": {"keep": keep}}},
            )  # fmt: skip
            async for chunk in stream:
                if not seen and any(choice.delta.content for choice in chunk.choices):
                    seen = True
                    firsts.append(time.perf_counter() - begun)

    async with AsyncOpenAI(**told) as client:
        begun = time.perf_counter()
        await asyncio.gather(*(one(client, body) for body in bodies))
        seconds = time.perf_counter() - begun
    return {
        "at_once": at_once, "keep": keep, "requests": number, "rate": number / seconds,
        "median": statistics.median(firsts), "p99": float(np.quantile(firsts, 0.99)),
    }  # fmt: skip


def picture(name: str) -> str:
    """A picture of noise that only `name` has, as an address that holds it."""
    from PIL import Image

    rng = np.random.default_rng(list(name.encode()))
    small = Image.fromarray(rng.integers(0, 255, (48, 48, 3), dtype=np.uint8))
    out = io.BytesIO()
    small.resize((2 * SIDE, 2 * SIDE), Image.Resampling.NEAREST).save(out, "PNG")
    return data_url(out.getvalue())


def messages(url: str) -> list[dict[str, Any]]:
    """A question about one picture."""
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    return [{"role": "user", "content": parts}]


if __name__ == "__main__":
    main()
