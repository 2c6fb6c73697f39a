"""Released checkpoints of [1] as a folder of FusedLlava.

python -m tokensieve.hf.fused.convert --checkpoint DIR_OR_FILE --out DIR [--llm DIR] [--encoder DIR]

The weights that the authors of [1] release stay under their licence, to all appearances CC BY-NC
4.0: not for commercial use. A converted folder is under the same.

[1] Learning Compact Vision Tokens for Efficient Large Multimodal Models, arXiv 2506.07138.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from tokensieve.errors import ConfigError, TokensieveError, WeightsError
from tokensieve.files import written_folder
from tokensieve.folders import Kind, check_ours
from tokensieve.hf.fused.carried import image_processor, tokenizer_with_image
from tokensieve.hf.fused.config import ENCODERS, FusedLlavaConfig, encoder_grid, pair
from tokensieve.hf.fused.model import FusedLlavaForConditionalGeneration
from tokensieve.hf.fused.processor import FusedLlavaProcessor
from tokensieve.hf.fused.released import Released, blocks_read, read_released, renamed
from tokensieve.hf.models.loaded import Loaded, code_refused, first_line, hush

LLMS = {"llava_llama": "llama", "llava": "llama", "llava_mistral": "mistral"}
_LEGACY = ("rope_theta", "rope_scaling")  # fields that older configs have
_FAILURES = (OSError, ValueError, RuntimeError, ImportError, KeyError)


def convert(
    checkpoint: str | Path, out: str | Path, *, llm: str | None = None, encoder: str | None = None
) -> Loaded:
    """Write the FusedLlava of a released checkpoint, and its processor, to the folder `out`.

    checkpoint: a folder, or the file that stage 1 leaves. llm: a causal LLM's folder, where the
    checkpoint holds none. encoder: the encoder's folder; None: what config.json names.

    Raises `WeightsError` for what is not in the released layout or does not fit together,
    `ConfigError` for an `out` that is not empty and for parts that are missing or given twice.
    """
    out = Path(out).expanduser()
    check_ours(out, Kind("a converted checkpoint", own=True))
    released = read_released(checkpoint)
    _check_use(released.values)
    folder = Path(checkpoint).expanduser()
    folder = folder if folder.is_dir() else folder.parent
    words, text, weights = _llm(released, folder, llm)
    source = encoder or released.values.get("mm_vision_tower")
    if not source:
        raise ConfigError(
            "Expected the encoder: --encoder, or `mm_vision_tower` in config.json beside the "
            "checkpoint. Got neither. Pass --encoder DIR."
        )
    vision, tower = _encoder(str(source), released)
    tokenizer, image_token = tokenizer_with_image(words, text)
    weights = _with_rows(weights, image_token + 1)
    text.vocab_size = len(weights["model.embed_tokens.weight"])
    config = _config(released, vision, text, image_token)
    model = _model(config, weights, tower, released)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(tokenizer, name))
    processor: Any = FusedLlavaProcessor(
        image_processor(str(source), pair(vision.image_size), released.values),
        tokenizer,
        patch_size=pair(vision.patch_size)[0],
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        chat_template=tokenizer.chat_template,
        num_additional_image_tokens=int(ENCODERS[vision.model_type]),
        kernel=config.fusion_kernel,
        fused=config.fusion_fused,
    )
    with written_folder(out) as part:
        model.save_pretrained(part)
        processor.save_pretrained(part)
    return Loaded(str(out), model, processor)


def _check_use(values: Any) -> None:
    """Raise `WeightsError` for a checkpoint that reads CLS, or marks where pictures begin."""
    for name, usual in (("mm_vision_select_feature", "patch"), ("mm_use_im_start_end", False)):
        if (got := values.get(name, usual)) != usual:
            raise WeightsError(
                f"Expected {name}={usual!r} in config.json, as released. Got {got!r}, which a "
                "FusedLlava cannot express."
            )


def _llm(
    released: Released, folder: Path, llm: str | None
) -> tuple[str, Any, dict[str, Tensor]]:  # fmt: skip
    """Where the tokenizer lies, the LLM's config and its weights as in a causal LLM."""
    if bool(released.llm) == bool(llm):
        got = "both" if llm else "neither"
        raise ConfigError(
            f"Expected the LLM either in the checkpoint or by --llm. Got {got}. "
            + ("Leave --llm out." if llm else "Pass --llm DIR, the LLM it was trained with.")
        )
    if llm is None:
        return str(folder), _text_config(released.values), released.llm
    models: Any = AutoModelForCausalLM  # untyped in Transformers
    try:
        model = models.from_pretrained(llm, dtype="auto", trust_remote_code=False)
    except _FAILURES as error:
        raise code_refused(llm, error) or WeightsError(
            f"Expected a causal LLM in '{llm}'. Got: {first_line(error)}"
        ) from error
    weights = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    return llm, model.config, weights


def _text_config(values: Any) -> Any:
    """The LLM's config, which the checkpoint's own holds among fields about pictures."""
    kind = LLMS.get(values.get("model_type", ""))
    if kind is None:
        raise WeightsError(
            f"Expected config.json with the model_type of a released checkpoint "
            f"({', '.join(LLMS)}). Got {values.get('model_type', 'no config.json')!r}. Copy the "
            "whole checkpoint."
        )
    known = {*AutoConfig.for_model(kind).to_dict(), *_LEGACY} - {"model_type", "architectures"}
    return AutoConfig.for_model(kind, **{k: v for k, v in values.items() if k in known})


def _encoder(source: str, released: Released) -> tuple[Any, dict[str, Tensor]]:
    """The encoder's config, and its weights: the checkpoint's, or else those of `source`."""
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        vision = getattr(config, "vision_config", config)
        if vision.model_type not in ENCODERS:
            raise WeightsError(
                f"Expected an encoder of the kind {', '.join(ENCODERS)}. Got "
                f"'{vision.model_type}' in '{source}'."
            )
        kind: Any = MODEL_MAPPING[type(vision)]
        if released.tower:
            loaded = kind.from_pretrained(
                None, config=vision, state_dict=released.tower, output_loading_info=True,
                trust_remote_code=False,
            )  # fmt: skip
        else:
            loaded = kind.from_pretrained(source, output_loading_info=True, trust_remote_code=False)
    except TokensieveError:
        raise
    except _FAILURES as error:
        raise code_refused(source, error) or WeightsError(
            f"Expected the vision encoder '{source}'. Got: {first_line(error)} Pass --encoder "
            "DIR, a folder with its config.json and safetensors."
        ) from error
    model, info = loaded
    lost = info["missing_keys"] or (info["unexpected_keys"] if released.tower else ())
    if lost:
        raise WeightsError(
            f"Expected the weights of '{source}'. Got others: {min(lost)} ({len(lost)} differ)."
        )
    if released.width != vision.hidden_size:
        raise WeightsError(
            f"Expected the encoder that the projector reads, {released.width} wide. Got "
            f"'{source}', {vision.hidden_size} wide. Pass --encoder DIR."
        )
    return vision, dict(model.state_dict())


def _with_rows(weights: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    """Input and output embeddings with at least so many rows.

    New rows are the mean of the old ones, so a new token's logit is the mean of all others' and is
    never the highest.
    """
    grown = dict(weights)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        table = grown.get(name)
        if table is not None and len(table) < rows:
            mean = table.float().mean(0, keepdim=True).to(table.dtype)
            grown[name] = torch.cat([table, mean.expand(rows - len(table), -1)])
    return grown


def _config(released: Released, vision: Any, text: Any, image_token: int) -> FusedLlavaConfig:
    if released.out_width != text.hidden_size:
        raise WeightsError(
            f"Expected the LLM that the projector writes for, {released.out_width} wide. Got one "
            f"{text.hidden_size} wide. Pass the --llm it was trained with."
        )
    layer = int(released.values.get("mm_vision_select_layer", -2))
    return FusedLlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token,
        vision_feature_layer=blocks_read(released.blocks, vision.num_hidden_layers, layer),
        vision_feature_select_strategy="default" if ENCODERS[vision.model_type] else "full",
        fusion_form="release",
        tie_word_embeddings=bool(text.tie_word_embeddings),
    )


def _model(
    config: FusedLlavaConfig, llm: dict[str, Tensor], tower: dict[str, Tensor], released: Released
) -> Any:
    """The model of all weights, in the LLM's dtype."""
    state = {f"model.vision_tower.{name}": tensor for name, tensor in tower.items()}
    for name, tensor in llm.items():
        state[name.replace("model.", "model.language_model.", 1)] = tensor
    loaded: Any = FusedLlavaForConditionalGeneration.from_pretrained(
        None,
        config=config,
        state_dict={**state, **renamed(released)},
        dtype=llm["model.embed_tokens.weight"].dtype,
        output_loading_info=True,
        trust_remote_code=False,
    )
    model, info = loaded
    lost = info["missing_keys"] | info["unexpected_keys"]
    if lost:
        raise WeightsError(
            f"Expected the weights of a '{config.text_config.model_type}' as config.json "
            f"describes it. Got others: {min(lost)} ({len(lost)} differ). Copy the checkpoint anew."
        )
    return model


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code, 2 for an error of the caller's making."""
    parser = argparse.ArgumentParser(
        prog="python -m tokensieve.hf.fused.convert",
        description="Convert a released checkpoint with token fusion to a folder of FusedLlava.",
    )
    parser.add_argument(
        "--checkpoint", required=True, help="its folder, or the projector's file of stage 1"
    )
    parser.add_argument("--out", required=True, help="the folder to write, new or empty")
    parser.add_argument("--llm", help="folder of the LLM, where the checkpoint holds none")
    parser.add_argument(
        "--encoder", help="folder of the vision encoder, if not what config.json names"
    )
    options = parser.parse_args(arguments)
    hush()
    try:
        made = convert(options.checkpoint, options.out, llm=options.llm, encoder=options.encoder)
    except TokensieveError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    config = made.model.config
    rows, columns = encoder_grid(config.vision_config)
    sys.stdout.write(
        f"{made.name}: {config.image_seq_length} tokens a picture of {rows} x {columns} patches, "
        f"blocks {config.vision_feature_layer}. "
        "Load it with tokensieve.load_model.\n"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
