"""What a training prints: one line a message, from the first process alone."""

from __future__ import annotations

import logging
import os
import sys


class _Terminal(logging.Handler):
    """Writes to stderr as it is when the message comes."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{record.getMessage()}\n")


def log_to_terminal() -> None:
    """Send the training's messages to stderr; other processes of a group stay quiet."""
    logger = logging.getLogger("tokensieve.train")
    if logger.handlers or os.environ.get("RANK", "0") != "0":
        return
    logger.addHandler(_Terminal())
    logger.setLevel(logging.INFO)
