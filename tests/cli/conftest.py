"""A tiny random LLaVA as a user would have it: a directory that Transformers can load."""

import sys

import numpy as np
import pytest
from PIL import Image

from toys.llava_tiny import tiny_model, tiny_processor


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """16 visual tokens a picture, answers of noise."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def picture(tmp_path):
    """A picture file of noise, twice as wide as high."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process: (exit code, stdout, stderr)."""
    from tokensieve import cli

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["tokensieve", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return command
