"""Build the glyph atlas from installed fonts: `python -m tokensieve.data.synth.build_atlas OUT`.

Only needed to change the set of faces; the built file is part of the package. The Debian
packages it reads are in PACKAGES (`apt-get install --no-install-recommends ...`); all faces
are under the OFL, Apache-2.0, MIT, Bitstream Vera or public-domain terms.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tokensieve.data.synth.glyphs import CHARSET, EM
from tokensieve.files import make_folder, written_whole

PACKAGES = (
    "fonts-dejavu-core fonts-dejavu-extra fonts-liberation fonts-roboto-unhinted fonts-open-sans "
    "fonts-lato fonts-noto-core fonts-noto-mono fonts-inconsolata fonts-hack fonts-firacode "
    "fonts-cantarell fonts-crosextra-carlito fonts-crosextra-caladea fonts-courier-prime "
    "fonts-linuxlibertine fonts-ebgaramond fonts-jetbrains-mono fonts-anonymous-pro "
    "fonts-fantasque-sans fonts-quicksand fonts-vollkorn fonts-dosis fonts-comic-neue "
    "fonts-oldstandard fonts-junicode fonts-tuffy"
)
SEEN = [
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSansCondensed",
    "LiberationMono-Regular",
    "LiberationMono-Bold",
    "LiberationSans-Regular",
    "LiberationSans-Bold",
    "LiberationSerif-Regular",
    "LiberationSerif-Bold",
    "LiberationSansNarrow-Regular",
    "Roboto-Regular",
    "Roboto-Bold",
    "RobotoCondensed-Regular",
    "RobotoCondensed-Bold",
    "Lato-Regular",
    "Lato-Bold",
    "NotoSans-Regular",
    "NotoSans-Bold",
    "NotoSerif-Regular",
    "NotoSerif-Bold",
    "NotoSansMono-Regular",
    "Inconsolata",
    "Hack-Regular",
    "Hack-Bold",
    "FiraCode-Regular",
    "FiraCode-Bold",
    "Cantarell-Regular",
    "Cantarell-Bold",
    "Carlito-Regular",
    "Carlito-Bold",
    "CourierPrime",
    "CourierPrimeBold",
    "LinLibertine_R",
    "LinLibertine_RB",
    "EBGaramond12-Regular",
    "EBGaramond12-Bold",
    "AnonymousPro",
    "AnonymousProB",
    "Quicksand-Regular",
    "Quicksand-Bold",
    "Dosis-Medium",
    "Dosis-Bold",
    "ComicNeue-Regular",
    "ComicNeue-Bold",
    "JunicodeTwoBeta-Regular",
    "OldStandard-Regular",
    "Vollkorn-Regular",
]
UNSEEN = [
    "OpenSans-Regular",
    "OpenSans-Bold",
    "JetBrainsMono-Regular",
    "JetBrainsMono-Bold",
    "Caladea-Regular",
    "Caladea-Bold",
    "Tuffy",
    "FantasqueSansMono-Regular",
    "LinBiolinum_R",
    "CourierPrimeSans",
]


def find_font(name: str, root: Path) -> Path:
    """The font file called `name` (spaces ignored) under `root`; FileNotFoundError if none."""
    for path in sorted(root.rglob("*")):
        if path.suffix in {".ttf", ".otf"} and path.stem.replace(" ", "") == name:
            return path
    raise FileNotFoundError(f"Expected font {name} under {root}. Install: {PACKAGES}")


def rasterise(font: ImageFont.FreeTypeFont, char: str) -> tuple[NDArray[np.uint8], int, int, int]:
    """Bitmap (H, W) in 16 grey levels, top and left from the pen, advance in 1/64 px."""
    left, top, right, bottom = (int(v) for v in font.getbbox(char, anchor="ls"))
    size = (max(1, right - left), max(1, bottom - top))
    image = Image.new("L", size, 0)
    ImageDraw.Draw(image).text((-left, -top), char, fill=255, font=font, anchor="ls")
    levels = np.asarray(image, dtype=np.uint8) // 17 * 17
    return levels, -top, left, round(font.getlength(char) * 64)


def build(root: Path, out: Path) -> None:
    """Write the atlas of SEEN + UNSEEN faces found under `root` to `out` (.npz)."""
    names, parts, offset = (*SEEN, *UNSEEN), [], 0
    meta = np.zeros((len(names), len(CHARSET), 6), dtype=np.int32)
    for row, name in enumerate(names):
        font = ImageFont.truetype(str(find_font(name, root)), EM)
        for col, char in enumerate(CHARSET):
            bits, top, left, advance = rasterise(font, char)
            meta[row, col] = (offset, *bits.shape, top, left, advance)
            parts.append(bits.ravel())
            offset += bits.size
    unseen = np.array([name in UNSEEN for name in names])
    make_folder(out.parent)
    with written_whole(out) as part:
        np.savez_compressed(
            part, names=np.array(names), unseen=unseen, bits=np.concatenate(parts), meta=meta
        )


if __name__ == "__main__":
    build(Path("/usr/share/fonts"), Path(sys.argv[1]))
