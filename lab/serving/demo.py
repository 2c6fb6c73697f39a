"""Start vLLM's server with the embedded model, ask it over the OpenAI API, show what was kept.

python -m lab.serving.demo [--out FOLDER]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from lab.serving.server import NAME, message, serving
from tokensieve import load_model
from tokensieve.assets import asset_path
from tokensieve.serving.folder import write_folder

KEEPS = (1.0, 0.4, 0.2)
QUESTIONS = (("page", "What is the total?"), ("cluttered", "What is KR?"))
SETTING = {"method": "selector", "keep": 1.0, "least": 0.1}
ARGUMENTS = ("--trust-request-mm-kwargs",)  # else vLLM lets no request choose


def main() -> None:
    """Serve, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/serving"))
    out = parser.parse_args().out
    loaded = load_model("nano")
    folder = write_folder(loaded.model, loaded.processor, out / "nano")
    print(f"Starting vLLM with {SETTING}; its log is {out / 'server.log'}.")
    with serving(folder, SETTING, out / "server.log", *ARGUMENTS) as address:
        print("| picture | question | keep | tokens of the prompt | first token | answer |")
        print("| :-- | :-- | --: | --: | --: | :-- |")
        for name, question in QUESTIONS:
            ask(address, "page", "warm up", 1.0)
            for keep in KEEPS:
                tokens, first, answer = ask(address, name, question, keep)
                print(f"| {name} | {question} | {keep} | {tokens} | {first:.0f} ms | {answer} |")


def ask(address: str, picture: str, question: str, keep: float) -> tuple[int, float, str]:
    """(tokens of the prompt, milliseconds to the first token, answer) of one streamed request."""
    from openai import OpenAI

    client: Any = OpenAI(base_url=address, api_key="none")
    begun, first, answer, tokens = time.perf_counter(), 0.0, "", 0
    stream = client.chat.completions.create(
        model=NAME,
        messages=message(question, asset_path("pictures") / f"{picture}.png"),
        temperature=0,
        max_completion_tokens=16,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"mm_processor_kwargs": {"tokensieve": {"keep": keep}}},
    )
    for chunk in stream:
        for choice in chunk.choices:
            if choice.delta.content:
                first = first or 1000 * (time.perf_counter() - begun)
                answer += choice.delta.content
        if chunk.usage:
            tokens = chunk.usage.prompt_tokens
    return tokens, first, answer


if __name__ == "__main__":
    main()
