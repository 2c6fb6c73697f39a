"""A model and its processor, by name: one of the package, a directory, or a name on the hub.

"nano+FILE" is nano, "nano2+FILE" nano2, with the projector and LLM of a safetensors file.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from tokensieve.assets import asset_path
from tokensieve.errors import (
    ConfigError,
    TokensieveError,
    UnsupportedError,
    WeightsError,
)
from tokensieve.fields import check_names, shown
from tokensieve.hf.models.loaded import Loaded, code_refused, first_line, named
from tokensieve.nn.selector import fast_in

# the embedded models: a variant of `load_nano` and its folder in the package
NANO = {
    "nano": ("llava", "nano"),
    "nano-next": ("llava-next", "nano"),
    "nano-control": ("control", "nano"),
    "nano2": ("llava", "nano2"),
    "nano2-next": ("llava-next", "nano2"),
}
COMPUTE = ("auto", "float32", "bfloat16", "float16")


def load_model(name: str, dtype: str = "auto", device: str | None = None) -> Loaded:
    """The model called `name`: a key of `NANO`, a directory, or a repository of the hub.

    dtype: one of `COMPUTE`, "auto" as the weights are stored, in float32 where the device is slow
    in that. device: None, a GPU if there is one; the embedded models stay on the CPU unless one is
    named.

    Never runs code that comes with a model. Raises `WeightsError` if there is no such model, its
    files are damaged, or the hub cannot be reached; `UnsupportedError` if it reads no pictures;
    `UnknownNameError` for the dtype, `ConfigError` for a device that is not there.
    """
    found = _checked(name, dtype, device)
    if name.partition("+")[0] in NANO:
        return _embedded(name, dtype, device or "cpu")
    return _load(name, dtype, found, encoder_only=False)


def load_encoder(name: str, dtype: str = "auto", device: str | None = None) -> Loaded:
    """The same for reading pictures only: of the LLM one layer is made, which never runs.

    dtype: one of `COMPUTE`, "auto" as `load_model` takes it. device: None, a GPU if there is one.
    Raises what `load_model` raises.
    """
    found = _checked(name, dtype, device)
    if name in NANO:
        return _embedded(name, dtype, found)
    return _load(name, dtype, found, encoder_only=True)


def _checked(name: object, dtype: str, device: str | None) -> str:
    """The device asked for, or the best one; all arguments checked."""
    if not isinstance(name, str) or not name:
        raise ConfigError(
            f"Expected the name of a model or the path of its folder, as text. Got {shown(name)}. "
            "Pass 'nano', 'org/name' or a folder."
        )
    check_names("dtype to compute in", [dtype], COMPUTE)
    return check_device(device)


def check_device(device: str | None) -> str:
    """The device asked for, or a GPU if there is one. Raises `ConfigError` for one not there."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    # what torch raises for a device it was not built for, and for one it does not know
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"Expected a device of this machine, such as cpu or cuda:0. Got '{device}': "
            f"{first_line(error)}. Leave it out to have one chosen."
        ) from error
    return device


def _embedded(name: str, dtype: str, device: str) -> Loaded:
    """A model of the package, or "NAME+FILE": with another projector and LLM."""
    from tokensieve.hf.models.nano import load_nano, load_reader

    wanted = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    own, plus, file = name.partition("+")
    variant, folder = NANO[own]
    model, processor = load_nano(variant, wanted, asset_path(folder))
    if plus:
        path = Path(file).expanduser()
        try:
            load_reader(model, path)  # type: ignore[arg-type]
        except (OSError, RuntimeError, KeyError, SafetensorError) as error:
            raise WeightsError(
                f"Expected projector and LLM of {own} in {path}. Got: {first_line(error)}"
            ) from error
    torch.nn.Module.to(model, device)
    return Loaded(name, model, processor)


def _load(name: str, dtype: str, device: str, *, encoder_only: bool) -> Loaded:
    model, processor = _from_pretrained(name, dtype, device, encoder_only)
    return Loaded(name, model.eval().to(device), processor)


def _source(name: str) -> str:
    """The folder `name` means, or itself as a name on the hub."""
    if not (name.startswith((".", "/", "~")) or Path(name).exists()):
        return name
    path = Path(name).expanduser()
    if not (path / "config.json").is_file():
        got = "a directory without it" if path.is_dir() else "no such directory"
        raise WeightsError(f"Expected a model directory with config.json. Got {got}: {name}.")
    return str(path)


def config_of(name: str) -> Any:
    """The config of a model by name, its weights not touched. Raises what `load_model` raises."""
    from transformers import AutoConfig

    if name in NANO:
        return AutoConfig.from_pretrained(asset_path(NANO[name][1]), trust_remote_code=False)
    try:
        return AutoConfig.from_pretrained(_source(name), trust_remote_code=False)
    except TokensieveError:
        raise
    except Exception as error:  # a stranger's file
        raise _not_loaded(name, error) from error


def first_layer_only(config: Any) -> Any:
    """`config` with an LLM of one layer: what the picture's side of a model needs of it."""
    config = deepcopy(config)
    text = config.get_text_config()
    depth = text.num_hidden_layers
    for field, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == depth:
            setattr(text, field, value[:1])
    if getattr(text, "num_kv_shared_layers", None):
        text.num_kv_shared_layers = 0
    text.num_hidden_layers = 1
    return config


def computed_in(dtype: str, stored: Any, device: str) -> str:
    """The dtype to load weights in that are `stored` in another: "auto" as they are, unless the
    device is slower in that; a CPU without instructions for it takes 6 to 15 times as long."""
    half = getattr(torch, str(stored).removeprefix("torch."), None)
    if dtype != "auto" or half not in (torch.float16, torch.bfloat16):
        return dtype
    return dtype if fast_in(torch.device(device).type, half) else "float32"


def _from_pretrained(name: str, dtype: str, device: str, encoder_only: bool) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    from tokensieve.hf.fused import register
    from tokensieve.hf.models.processors import load_processor

    register()
    models: Any = AutoModelForImageTextToText  # untyped in Transformers
    source = _source(name)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            raise UnsupportedError(
                f"Expected a vision-language model. Got '{config.model_type}' in {name}, which has "
                "no visual tokens."
            )
        processor = load_processor(source, config)
        if encoder_only:
            config = first_layer_only(config)
        model, info = models.from_pretrained(
            source,
            config=config,
            dtype=computed_in(dtype, getattr(config, "dtype", None), device),
            output_loading_info=True,
            trust_remote_code=False,
        )
    except TokensieveError:
        raise
    except Exception as error:  # files of a stranger's: Transformers trips over them in any way
        raise _not_loaded(name, error) from error
    if info["missing_keys"]:
        raise WeightsError(
            f"Expected all weights of {name}. Got none for {len(info['missing_keys'])} tensors, "
            f"such as {min(info['missing_keys'])}. Fetch the model again."
        )
    return model, processor


def _not_loaded(name: str, error: Exception) -> TokensieveError:
    """What is wrong with a model that Transformers would not load, and what to do about it."""
    if refusal := code_refused(name, error):
        return refusal
    if "connect" in str(error) and not Path(name).exists():
        return WeightsError(
            f"Expected '{name}' on the hub, in its cache, or as a model directory. Got no "
            "connection to the hub, no copy in the cache and no such directory. Check the name and "
            "the network, or use 'nano', which needs no download."
        )
    return WeightsError(
        f"Expected a model that Transformers can load in '{name}'. Got: {named(error)} Check "
        "the name and its files, or use 'nano', which needs no download."
    )
