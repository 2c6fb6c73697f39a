"""What a training prints: one line a message, from the first process alone."""

from __future__ import annotations

import logging
import os
import sys


def log_to_terminal() -> None:
    """Send the training's messages to stderr; other processes of a group stay quiet."""
    logger = logging.getLogger("tokensieve.train")
    if logger.handlers or os.environ.get("RANK", "0") != "0":
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
