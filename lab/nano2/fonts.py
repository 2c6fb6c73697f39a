"""Which fonts are trained on and which never are, by file name; found under /usr/share/fonts.

Families do not cross splits: no weight of a family of VAL or TEST is in TRAIN. The packages are
named in README.md; a font that is missing is an error, for another set gives other pages.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from PIL import ImageFont

from lab.nano2.words import listed
from tokensieve.errors import MissingPackageError

ROOT = Path(os.environ.get("NANO2_FONTS", "/usr/share/fonts"))
EASY = listed(
    """
    DejaVuSans.ttf DejaVuSans-Bold.ttf DejaVuSansMono.ttf DejaVuSerif.ttf LiberationSans-Regular.ttf
    LiberationSans-Bold.ttf LiberationSerif-Regular.ttf LiberationMono-Regular.ttf
    OpenSans-Regular.ttf Lato-Regular.ttf FreeSans.ttf Hack-Regular.ttf
    """
)
TRAIN = (
    *EASY,
    *listed(
        """
        DejaVuSansMono-Bold.ttf DejaVuSerif-Bold.ttf DejaVuSansCondensed.ttf
        DejaVuSansCondensed-Bold.ttf DejaVuSans-Oblique.ttf DejaVuSerifCondensed.ttf
        LiberationSans-Italic.ttf LiberationSerif-Bold.ttf LiberationSerif-Italic.ttf
        LiberationMono-Bold.ttf LiberationSansNarrow-Regular.ttf LiberationSansNarrow-Bold.ttf
        OpenSans-Semibold.ttf OpenSans-Bold.ttf OpenSans-Light.ttf OpenSans-CondBold.ttf
        Lato-Bold.ttf Lato-Italic.ttf Lato-Medium.ttf Lato-Black.ttf FreeSansBold.ttf FreeMono.ttf
        FreeMonoBold.ttf FreeSerif.ttf FreeSerifBold.ttf FreeSerifItalic.ttf Hack-Bold.ttf
        Inconsolata.otf FiraCode-Regular.ttf FiraCode-Bold.ttf JetBrainsMono-Regular.ttf
        JetBrainsMono-Bold.ttf Courier*Prime.otf Courier*Prime*Bold.otf Caladea-Regular.ttf
        Caladea-Bold.ttf Cabin-Regular.otf Cabin-Bold.otf Karla-Regular.otf Oxygen-Sans.ttf
        OxygenMono-Regular.ttf Play-Regular.ttf Go-Regular.ttf Go-Mono.ttf Go-Bold.ttf
        Vollkorn-Regular.ttf EBGaramond12-Regular.otf LinLibertine_R.otf LinBiolinum_R.otf
        URWGothic-Book.otf URWBookman-Light.otf C059-Roman.otf P052-Roman.otf NimbusMonoPS-Bold.otf
        mononoki-Regular.ttf Monoid-Regular.ttf OCRB.otf Dosis-Medium.otf Quicksand-Medium.ttf
        LeagueSpartan-Regular.otf FantasqueSansMono-Regular.ttf
        """
    ),
)
VAL = listed(
    """
    Carlito-Regular.ttf Carlito-Bold.ttf Cantarell-Regular.otf CharisSIL-Regular.ttf
    agave-r-autohinted.ttf Anonymous*Pro.ttf
    """
)
TEST = listed(
    """
    Roboto-Regular.ttf Roboto-Bold.ttf RobotoCondensed-Regular.ttf NotoSans-Regular.ttf
    NotoSans-Bold.ttf NotoSerif-Regular.ttf NotoMono-Regular.ttf Gentium-R.ttf GFSDidot.otf OCRA.ttf
    Comfortaa-Regular.ttf
    """
)


@cache
def path_of(name: str) -> str:
    """Where the font of that file name lies (`*` stands for any one character: a space)."""
    found = sorted(ROOT.rglob(name.replace("*", "?")))
    if not found:
        raise MissingPackageError(
            f"Expected the font {name} under {ROOT}. Got none. Install the packages that "
            "lab/nano2/README.md names."
        )
    return str(found[0])


@cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """The font at `size` pixels to the em."""
    return ImageFont.truetype(path_of(name), size, layout_engine=ImageFont.Layout.BASIC)


@cache
def x_height(name: str, size: int) -> float:
    """Height of a small letter in pixels."""
    return -font(name, size).getbbox("x", anchor="ls")[1]


@cache
def advance(name: str, size: int, before: str, char: str) -> float:
    """From where `char` begins to where the next one does, in pixels, `before` standing before it:
    kerning goes by pairs."""
    face = font(name, size)
    return face.getlength(before + char) - (face.getlength(before) if before else 0.0)
