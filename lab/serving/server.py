"""vLLM's OpenAI server in a process group of its own, from start to stop."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

PATIENCE = 600  # seconds a start may take
NAME = "served"  # of the model, to a client
# One thread a worker and no look-ups in the network; the rest keeps the CPU build small.
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1", "CUDA_VISIBLE_DEVICES": "", "VLLM_LOGGING_LEVEL": "WARNING",
}  # fmt: skip
ARGUMENTS = ("--dtype", "float32", "--enforce-eager")


@contextmanager
def serving(
    folder: Path, setting: Mapping[str, Any] | None, log: Path, *arguments: str
) -> Iterator[str]:
    """The address of a server of the model in `folder`, for as long as the block runs.

    log: where the server's own lines go. arguments: of `vllm serve`, further ones.
    Raises `RuntimeError` with the end of the log where it does not start.
    """
    port = free_port()
    # what `vllm serve` runs, which the CPU build's own command does not reach under its other name
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(folder), "--served-model-name", NAME, "--port", str(port)]
    command += ["--host", "127.0.0.1", *ARGUMENTS, *arguments]
    if setting is not None:
        command += ["--hf-overrides", json.dumps({"tokensieve": setting})]
    with log.open("w") as lines:
        server = subprocess.Popen(
            command, env=ENVIRONMENT | os.environ, stdout=lines, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        _wait(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        _stop(server)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait(server: subprocess.Popen[bytes], health: str, log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if server.poll() is not None:
            break
        try:
            with urlopen(health, timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"Expected a server. Got, in {log}:\n{log.read_text()[-6000:]}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, number)
            server.wait(30)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def message(question: str, *pictures: Path) -> list[dict[str, Any]]:
    """A conversation as the OpenAI API has it: pictures inside it, then the question."""
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": data_url(path.read_bytes())}}
        for path in pictures
    ]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def data_url(png: bytes) -> str:
    """A picture as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
