"""Conversations about pictures in LLaVA's layout: CC-595K, LLaVA-Instruct and their like."""

from __future__ import annotations

from tokensieve.data.llava.rows import PLACEHOLDER, Found, Row, read_rows, reasons, refuse, told

__all__ = ["PLACEHOLDER", "Found", "Row", "read_rows", "reasons", "refuse", "told"]
