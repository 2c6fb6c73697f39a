"""Saving and loading trained modules: safetensors and a JSON config, never pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokensieve.errors import ConfigError, TokensieveError, WeightsError
from tokensieve.fields import read_object
from tokensieve.files import staged, write_text, written_folder
from tokensieve.folders import Kind, check_ours
from tokensieve.nn.config import StackConfig

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_FLOATS = ("F16", "BF16", "F32", "F64")
_WHOLE = ("BOOL", "U8", "I8", "I16", "I32", "I64")
# what safetensors and PyTorch raise for files of a stranger's
_BROKEN = (OSError, SafetensorError, ValueError, RuntimeError, TypeError, LookupError,
           AttributeError, MemoryError)  # fmt: skip
README = "README.md"
CARD = """---
{{ card_data }}
---
# {{ name }}
{{ what }}

Trained with tokensieve for an encoder `{{ encoder.model_type }}` of {{ encoder.depth }} layers:
site `{{ encoder.site }}`, width {{ encoder.width }}, layer {{ encoder.layer }}.
Another encoder is refused.
{% if told %}
{{ told }}
{% endif %}
Load it with `{{ name }}.from_pretrained(FOLDER_OR_NAME)`.
"""

ConfigT = TypeVar("ConfigT", bound=StackConfig)
ModuleT = TypeVar("ModuleT", bound="Pretrained[Any]")


class Pretrained(
    nn.Module,
    PyTorchModelHubMixin,
    Generic[ConfigT],
    library_name="tokensieve",
    model_card_template=CARD,
):
    """A module made from its config; `save_pretrained`, `from_pretrained`, `push_to_hub`."""

    config_class: ClassVar[type[StackConfig]]
    config: ConfigT
    source: str | None = None  # what `from_pretrained` was given

    def told(self) -> str:
        """What its card says beside that, in one paragraph; empty: nothing."""
        return ""

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The README beside the weights: what they are and which encoder they are for."""
        what = (type(self).__doc__ or "").partition("\n")[0]
        return super().generate_model_card(
            *args, name=type(self).__name__, what=what, encoder=self.config.encoder,
            told=self.told(), **kwargs,
        )  # fmt: skip

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        **options: Any,
    ) -> str | None:
        """Write config.json, the weights and, where there is none, a README; whole or not at all.

        Options as of Hugging Face's mixin. Raises `ConfigError` where the disk refuses, or where
        the folder holds the weights of anything else.
        """
        folder = Path(save_directory)
        if (folder / CONFIG).exists() or (folder / WEIGHTS).exists():
            check_ours(folder, weights_of(type(self)))
        with written_folder(folder) as part:
            super().save_pretrained(part, **options)
            if (folder / README).exists():
                (part / README).unlink()
        if not push_to_hub:
            return None
        return str(self.push_to_hub(repo_id or folder.name, **options))

    def _save_pretrained(self, save_directory: Path) -> None:
        write_json(save_directory / CONFIG, self.config.to_dict())
        write_weights(save_directory / WEIGHTS, self.state_dict())

    @classmethod
    def from_pretrained(
        cls: type[ModuleT],
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **options: Any,
    ) -> ModuleT:
        """The module in evaluation mode, from a folder or a hub repository.

        `options` override fields of its config, e.g. `rule="top"`.

        Raises `WeightsError` where a file is missing, truncated or not what the config says,
        `ConfigError` for an option that the config does not have.
        """
        source = str(pretrained_model_name_or_path)
        hub = {
            "force_download": force_download,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "revision": revision,
        }
        config_path, weights_path = (_locate(source, name, hub) for name in (CONFIG, WEIGHTS))
        try:
            config = cls.config_class.from_dict(read_json(config_path))
            with torch.device("meta"):  # nothing is allocated before the file has what is promised
                promised = cls(config).state_dict()
        except ConfigError as error:
            raise WeightsError(
                f"Expected {config_path} to describe a {cls.__name__}. {error}"
            ) from error
        check_weights(weights_path, promised)
        if options:
            config = cls.config_class.from_dict({**config.to_dict(), **options})
        model = cls(config)
        load_weights(model, weights_path)
        model.source = source
        return model.eval()


def weights_of(module: type[Pretrained[Any]]) -> Kind:
    """A folder that `module.save_pretrained` wrote."""

    def seen(folder: Path) -> bool:
        try:
            module.config_class.from_dict(read_json(folder / CONFIG))
        except (TokensieveError, TypeError, ValueError):
            return False
        return True

    return Kind(f"the weights of a {module.__name__}", seen, own=True)


def _locate(source: str, name: str, hub: dict[str, Any]) -> Path:
    """The file `name` of a local folder or a hub repository."""
    folder = Path(source)
    if folder.is_dir():
        if (folder / name).is_file():
            return folder / name
        if (folder / name).is_dir():
            raise WeightsError(f"Expected a file {name} in {folder}. Got a folder of that name.")
        pickles = sorted(f.name for f in folder.iterdir() if f.suffix in PICKLED)
        if name == WEIGHTS and pickles:
            raise WeightsError(
                f"Expected {name} in {folder}. Got {pickles[0]}, a pickle, which may run code when "
                "it is read and never is. Save the weights as safetensors."
            )
        raise WeightsError(f"Expected {name} in {folder}. It is not there: copy the whole folder.")
    if folder.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise WeightsError(
            f"Expected a folder with {CONFIG} and {WEIGHTS}, or a hub name 'owner/name'. "
            f"Got '{source}'."
        )
    try:
        return Path(hf_hub_download(source, name, **hub))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()
        raise WeightsError(
            f"Expected {name} at hub repository '{source}', or a local folder of that name. "
            f"Got: {reason[0] if reason else type(error).__name__} Check the name and the network."
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `WeightsError` if it holds none."""
    return read_object(path, "an object", WeightsError, "Download it again.")


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write JSON whole or not at all. Raises `ConfigError` where the disk refuses."""
    write_text(path, json.dumps(values, indent=2, sort_keys=True) + "\n")


def write_weights(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write safetensors whole or not at all. Raises `ConfigError` where the disk refuses."""
    whole = {name: t.detach().contiguous() for name, t in tensors.items()}
    with staged(path) as part:
        save_file(whole, part)


def read_weights(path: Path, wanted: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Tensors of a safetensors file. Raises `WeightsError` if it is missing or broken.

    wanted: tensors, on any device, of whose names, shapes and kinds its own must be, and finite;
    nothing is read where they are not.
    """
    if wanted is not None:
        check_weights(path, wanted)
    try:
        got = load_file(path)
    except _BROKEN as error:
        raise _broken(path, error) from error
    for name, tensor in got.items():
        if wanted is not None and not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"Expected finite numbers in {name} of {path}. Got NaN or Inf.")
    return got


def check_weights(path: Path, wanted: Mapping[str, Tensor]) -> None:
    """Raise `WeightsError` unless a safetensors file holds tensors of these names, shapes and
    kinds of numbers. Reads the file's header alone."""
    try:
        if not path.is_file():
            raise OSError("a folder" if path.is_dir() else "no such file")
        with safe_open(path, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            got = {name: (tuple(p.get_shape()), str(p.get_dtype())) for name, p in parts.items()}
    except _BROKEN as error:
        raise _broken(path, error) from error
    if names := sorted(got.keys() ^ wanted.keys()):
        raise WeightsError(
            f"Expected the tensors of its config in {path}. "
            f"{'Unexpected' if names[0] in got else 'Missing'}: {names[0]} ({len(names)} differ)."
        )
    for name, (shape, kind) in got.items():
        if shape != tuple(wanted[name].shape):
            raise WeightsError(
                f"Expected {name} of shape {tuple(wanted[name].shape)} in {path}, from its config. "
                f"Got {shape}."
            )
        if kind not in (_FLOATS if wanted[name].is_floating_point() else _WHOLE):
            want = str(wanted[name].dtype).removeprefix("torch.")
            raise WeightsError(f"Expected {name} as {want} in {path}. Got {kind}.")


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill `model` from `path`; numbers are cast to the model's dtype.

    Raises `WeightsError` unless names, shapes and finiteness are right.
    """
    model.load_state_dict(read_weights(path, model.state_dict()))


def _broken(path: Path, error: Exception) -> WeightsError:
    said = " ".join(str(error).split())[:200] or type(error).__name__
    return WeightsError(
        f"Expected a complete safetensors file at {path}. Got: {said}. Download it again."
    )
