"""Whether the fonts of nano 2's pages are installed; else tests that draw them are skipped."""

import pytest

from lab.nano2 import fonts
from tokensieve.errors import MissingPackageError


def installed() -> bool:
    """All of them: another set gives other pages."""
    try:
        return all(fonts.path_of(name) for name in (*fonts.TRAIN, *fonts.VAL, *fonts.TEST))
    except MissingPackageError:
        return False


with_fonts = pytest.mark.skipif(not installed(), reason="the fonts of lab/nano2/README.md")
