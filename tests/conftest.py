"""Shape checks on every public tensor signature, and one thread: tests must not fight for cores."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

from jaxtyping import install_import_hook

install_import_hook("tokensieve", "beartype.beartype")

import torch  # noqa: E402

torch.set_num_threads(1)
