"""What a training prints: one line a message, from the first process alone."""

from __future__ import annotations

import logging
import os
import sys


class _Terminal(logging.Handler):
    """Writes to stderr as it is when the message comes."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{record.getMessage()}\n")


def log_to_terminal(level: int = logging.INFO) -> None:
    """Send the training's messages from `level` up to stderr; other processes of a group stay
    quiet. What an earlier command of this process wanted to hear no longer counts."""
    if os.environ.get("RANK", "0") != "0":
        return
    logger = logging.getLogger("tokensieve.train")
    if not any(isinstance(handler, _Terminal) for handler in logger.handlers):
        logger.addHandler(_Terminal())
    logger.setLevel(level)
