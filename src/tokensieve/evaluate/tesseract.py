"""Tesseract, an engine that shares nothing with our models: what it reads in a picture.

Optional: Debian's package `tesseract-ocr`. Words count by themselves, wherever they stand.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokensieve.errors import InputError, MissingPackageError

PROGRAM = "tesseract"
BLOCK = "6"  # page segmentation: one block of text; layouts are not guessed anew for what is left
SECONDS = 120


def there() -> bool:
    """Whether the engine is installed."""
    return shutil.which(PROGRAM) is not None


def version() -> str:
    """The engine's, as it says it. Raises `MissingPackageError` where it is not installed."""
    return _run(["--version"], b"").splitlines()[0].strip()


def read(page: NDArray[np.uint8]) -> str:
    """The text of a (H, W, 3) RGB picture.

    Raises `MissingPackageError` where the engine is not installed, `InputError` where it fails.
    """
    file = io.BytesIO()
    Image.fromarray(page).save(file, "PNG")
    return _run(["stdin", "stdout", "--psm", BLOCK, "-l", "eng", "--dpi", "150"], file.getvalue())


def _run(arguments: list[str], given: bytes) -> str:
    if not there():
        raise MissingPackageError(
            f"Expected the program '{PROGRAM}' to read pictures. Got none on the path. Install "
            "Debian's package tesseract-ocr."
        )
    one_thread = os.environ | {"OMP_THREAD_LIMIT": "1"}
    try:
        done = subprocess.run(
            [PROGRAM, *arguments], input=given, capture_output=True, env=one_thread,
            timeout=SECONDS, check=True,
        )  # fmt: skip
    except (subprocess.SubprocessError, OSError) as problem:
        raise InputError(
            f"Expected '{PROGRAM}' to read a picture. Got {problem}. Look at the picture."
        ) from None
    return done.stdout.decode("utf-8", "replace")


def words(texts: Iterable[str]) -> Counter[str]:
    """Words of two or more letters and digits, in capitals, without marks at their ends."""
    found: Counter[str] = Counter()
    for word in " ".join(texts).upper().split():
        if sum(char.isalnum() for char in word) > 1:
            found[word.strip(".,:;!?'\"()[]{}<>*#|-_=~`")] += 1
    return found


def share(sought: Counter[str], found: Counter[str]) -> float:
    """Share of the words sought that were found, each as often as it was sought.

    Raises `InputError` where nothing is sought.
    """
    if not sought:
        raise InputError("Expected words to look for. Got none. Label the picture's text.")
    return (sought & found).total() / sought.total()
