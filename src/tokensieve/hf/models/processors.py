"""A model's processor, also where torchvision is missing: then without its part for videos."""

from __future__ import annotations

from typing import Any

from transformers.utils.import_utils import is_torchvision_available

from tokensieve.errors import TokensieveError, WeightsError


def load_processor(source: str, config: Any) -> Any:
    """The processor of the model at `source`, whose config is `config`.

    Processors that also take videos want torchvision, pictures do not pass through it: where it is
    missing, such a processor is put together for pictures alone.

    Raises `WeightsError` where files of it are missing, else what Transformers raises.
    """
    from transformers import AutoProcessor

    processors: Any = AutoProcessor  # untyped in Transformers
    try:
        return _whole(processors.from_pretrained(source, trust_remote_code=False), source)
    # RecursionError: Transformers looks for the class of a video processor it cannot import
    except (ImportError, AttributeError, ValueError, TypeError, RecursionError) as error:
        if is_torchvision_available() or isinstance(error, TokensieveError):
            raise
    return _whole(_for_pictures(source, config), source)


def _whole(processor: Any, source: str) -> Any:
    """`processor`, unless Transformers left out a part whose file was not there."""
    lacks = [name for name in ("image_processor", "tokenizer") if not hasattr(processor, name)]
    if getattr(processor, "patch_size", 1) is None:
        lacks.append("patch_size")
    if lacks:
        raise WeightsError(
            f"Expected the files of a whole processor in '{source}'. Got "
            f"{type(processor).__name__} without {' and '.join(lacks)}. Save it there: "
            "processor.save_pretrained(FOLDER)."
        )
    return processor


def pictures_only(kind: type[Any]) -> type[Any]:
    """The processor class `kind` with None allowed for its parts for videos and sound."""
    known = kind.check_argument_for_proper_class

    def check(self: Any, name: str, value: Any) -> Any:
        other = name not in ("image_processor", "tokenizer")
        return None if value is None and other else known(self, name, value)

    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": check})


def _for_pictures(source: str, config: Any) -> Any:
    import transformers
    from transformers import AutoImageProcessor, AutoTokenizer
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    images: Any = AutoImageProcessor
    tokenizers: Any = AutoTokenizer
    told, _ = transformers.ProcessorMixin.get_processor_dict(source)
    found: Any = getattr(transformers, str(told.get("processor_class")), None)
    if found is None:
        found = PROCESSOR_MAPPING[type(config)]
    kind = pictures_only(found)
    parts = {
        "image_processor": images.from_pretrained(source, trust_remote_code=False),
        "tokenizer": tokenizers.from_pretrained(source, trust_remote_code=False),
    }
    stored, _ = kind.get_processor_dict(source)
    wanted = [parts.get(name) for name in kind.get_attributes()]
    return kind.from_args_and_dict(wanted, stored)
