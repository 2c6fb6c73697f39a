"""Code that comes with a model is never run, also where the terminal would answer yes."""

import json
import os
import pty
import shutil
import sys
from pathlib import Path

import pytest
import transformers as tf
from transformers import dynamic_module_utils

from tokensieve.errors import UnsupportedError
from tokensieve.hf.fused.carried import image_processor
from tokensieve.hf.fused.convert import _encoder, _llm
from tokensieve.hf.fused.released import Released
from tokensieve.hf.load import load_encoder, load_model
from tokensieve.hf.models.nano import NANO

CODE = """
from pathlib import Path
from transformers import PretrainedConfig, ProcessorMixin
Path({mark!r}).touch()
class Mine(PretrainedConfig): model_type = "mine"
class MineParts(ProcessorMixin): pass
"""
REFUSED = r"which brings code of its own; tokensieve never runs it\. Use a checkpoint"


@pytest.fixture
def yes(monkeypatch, tmp_path):
    """A terminal that answers yes to every question, and where Transformers keeps foreign code."""
    keyboard, screen = pty.openpty()
    os.write(keyboard, b"y\n" * 50)
    with os.fdopen(screen) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
        monkeypatch.setattr(sys, "path", [*sys.path])
        yield
    os.close(keyboard)


@pytest.fixture
def trapped(tmp_path, yes):
    """Nano with a file that names code of its own, and the mark that the code would leave."""

    def make(file, values):
        folder, mark = tmp_path / "trap", tmp_path / "it ran"
        shutil.copytree(NANO, folder)
        (folder / "mine.py").write_text(CODE.format(mark=str(mark)))
        old = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**old, **values}))
        return str(folder), mark

    return make


WHOLE = ("config.json", {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}})
PICTURES = (
    "preprocessor_config.json",
    {"image_processor_type": "MineParts", "auto_map": {"AutoImageProcessor": "mine.MineParts"}},
)
# what Transformers has a class of its own for, whatever the files name
KNOWN = [
    ("config.json", {"auto_map": {"AutoConfig": "mine.Mine"}}),
    (
        "tokenizer_config.json",
        {"tokenizer_class": "MineParts", "auto_map": {"AutoTokenizer": ["mine.MineParts", None]}},
    ),
    ("processor_config.json", {"auto_map": {"AutoProcessor": "mine.MineParts"}}),
]


def test_the_trap_bites(trapped) -> None:
    folder, mark = trapped(*WHOLE)
    tf.AutoConfig.from_pretrained(folder)
    assert mark.exists()


@pytest.mark.parametrize("load", [load_model, load_encoder])
def test_a_model(trapped, load) -> None:
    folder, mark = trapped(*WHOLE)
    with pytest.raises(UnsupportedError, match=REFUSED):
        load(folder)
    assert not mark.exists()


def test_a_part_of_a_processor(trapped) -> None:
    folder, mark = trapped(*PICTURES)
    with pytest.raises(UnsupportedError, match=REFUSED):
        load_model(folder)
    with pytest.raises(UnsupportedError, match=REFUSED):
        image_processor(folder, (192, 192), {})
    assert not mark.exists()


def test_a_checkpoint_that_is_converted(trapped) -> None:
    folder, mark = trapped(*WHOLE)
    released = Released(projector={}, llm={}, tower={}, values={})
    for read in (
        lambda: _encoder(folder, released),
        lambda: _llm(released, Path(folder), folder),
    ):
        with pytest.raises(UnsupportedError, match=REFUSED):
            read()
    assert not mark.exists()


@pytest.mark.parametrize(("file", "values"), KNOWN)
def test_code_beside_files_that_do_without_is_left_alone(trapped, file, values) -> None:
    folder, mark = trapped(file, values)
    assert load_model(folder).model.config.model_type == "llava"
    assert not mark.exists()
