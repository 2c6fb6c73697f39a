"""Overlays of models that take every tile for a picture of its own."""

import pytest
from PIL import Image
from transformers.processing_utils import ProcessorMixin

from tokensieve.evaluate.ask import Settings, ask
from tokensieve.evaluate.overlay import check_overlay, write_overlay
from tokensieve.viz.geometry import crop_boxes
from toys.extract_tiny import noise
from toys.real_processors import MAKERS

APART = (
    "{% for c in messages[0]['content'] %}{{ c['text'] if c['type'] == 'text' else "
    "'<begin> <image> <end> w5' }} {% endfor %}"
)


@pytest.mark.parametrize("name", ["internvl", "next", "siglip", "qwen"])
def test_tiles_and_several_pictures_are_shown(name, monkeypatch, tmp_path):
    monkeypatch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *_: None)
    loaded = MAKERS[name]()
    loaded.processor.chat_template = APART
    pictures = [noise(40, 24, seed=0), noise(30, 70, seed=1)]
    check_overlay(loaded, pictures, "w20 w21")
    answer = ask(loaded, pictures, "w20 w21", "stride", Settings(keep=0.5, max_new_tokens=1))
    crops = sum(len(image.crops) for image in answer.images)
    images = loaded.processor.image_processor
    assert crops == sum(len(crop_boxes(images, picture.size)) for picture in pictures)
    write_overlay(tmp_path / "kept.png", loaded.processor, pictures, "w20 w21", [answer])
    assert Image.open(tmp_path / "kept.png").width > 384
