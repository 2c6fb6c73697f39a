"""Shapes are checked; one thread: tests must not fight for cores. No deadlines: how long a test
takes says how busy the machine is."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

from toys.shapes import check_shapes

check_shapes("tokensieve")

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from toys.quick import mark_slow  # noqa: E402

torch.set_num_threads(1)
hypothesis.settings.register_profile("busy", deadline=None)
hypothesis.settings.load_profile("busy")
COLLECTED = pytest.StashKey[list[pytest.Item]]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Before `-m` looks at the marks; what there is with and without them goes to `COLLECTED`."""
    mark_slow(items)
    config.stash[COLLECTED] = [*items]


@pytest.fixture
def collected(pytestconfig: pytest.Config) -> list[pytest.Item]:
    """Every test of this run's files, those that are left out as slow too."""
    return pytestconfig.stash[COLLECTED]
