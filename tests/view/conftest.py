"""A viewer of nano, loaded once."""

from __future__ import annotations

import base64
from io import BytesIO

import pytest

from tokensieve.evaluate.ask import Settings
from tokensieve.hf.load import load_model
from tokensieve.view.viewer import Viewer


@pytest.fixture(scope="session")
def loaded():
    return load_model("nano")


@pytest.fixture
def viewer(loaded):
    return Viewer(loaded, Settings(keep=0.2, max_new_tokens=4, options={"seed": 0}))


@pytest.fixture
def sent():
    """A file as a browser sends it, of bytes or a picture."""

    def make(what, name="a.png"):
        if not isinstance(what, bytes):
            file = BytesIO()
            what.save(file, "PNG")
            what = file.getvalue()
        return {"name": name, "data": base64.b64encode(what).decode()}

    return make
