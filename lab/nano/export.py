"""Stage 4: put encoder and language model together and write the shipped files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModel, LlavaForConditionalGeneration

from lab.nano.clip import normalise
from lab.nano.llava import write_llava
from lab.nano.lm import Reader, build_llava
from lab.nano.recipe import Recipe
from lab.nano.state import part
from lab.nano.vocabulary import build_tokenizer
from tokensieve.data.synth import generate
from tokensieve.errors import TrainingError
from tokensieve.files import make_folder, written_folder
from tokensieve.folders import Kind, check_ours, lies_in
from tokensieve.nn.pretrained import write_weights

MODEL = Kind("nano's model", lies_in("newline.safetensors"), own=True)
CONTROL = Kind("nano's control", lies_in("reader.safetensors"), own=True)


def assemble(recipe: Recipe, out: Path, name: str = "lm") -> LlavaForConditionalGeneration:
    """The whole model in float32 from `out/encoder` and `out/<name>-state`."""
    vision = CLIPVisionConfig.from_pretrained(out / "encoder", trust_remote_code=False)
    model = build_llava(recipe.lm, vision)
    encoder = CLIPVisionModel.from_pretrained(out / "encoder", trust_remote_code=False)
    model.model.vision_tower.load_state_dict(encoder.state_dict())
    state = load_file(out / f"{name}-state" / "state.safetensors")
    Reader(model).load_state_dict(part(state, "model."))
    model.train(False)
    return model


@torch.no_grad()
def newline(model: LlavaForConditionalGeneration) -> torch.Tensor:
    """The row-end token of the LLaVA-NeXT variant, (D,): the mean projected feature of 20
    plain pages. It was not trained; a mean says least."""
    pages = [np.asarray(generate("plain", seed, "val").image) for seed in range(20)]
    pixels = normalise(torch.from_numpy(np.stack(pages)))
    projected = model.model.get_image_features(
        pixels, vision_feature_layer=-1, vision_feature_select_strategy="default"
    ).pooler_output
    return torch.cat(list(projected)).mean(0)


def require_trained(recipe: Recipe, out: Path, name: str) -> None:
    """Raise `TrainingError` unless all steps of "lm" or "control" were made in `out`."""
    phases = recipe.lm.phases if name == "lm" else recipe.lm.control_phases
    wanted, file = sum(phase[0] for phase in phases), out / f"{name}-state" / "step.json"
    got = json.loads(file.read_text())["step"] if file.exists() else 0
    if got < wanted:
        raise TrainingError(
            f"Expected '{name}' in {out} after {wanted} steps. Got {got}. Run --stage {name}."
        )


def export_control(recipe: Recipe, out: Path, target: Path) -> None:
    """Projector and language model of the control (fp16), to `target`-control.

    Raises `TrainingError` if its training has not ended.
    """
    require_trained(recipe, out, "control")
    other = target.with_name(target.name + "-control")
    check_ours(other, CONTROL)
    make_folder(other)
    control = Reader(assemble(recipe, out, "control")).state_dict()
    write_weights(other / "reader.safetensors", {k: v.half() for k, v in control.items()})


def export_nano(recipe: Recipe, out: Path, target: Path) -> None:
    """Model (fp16), processor files and the newline token, to `target`.

    Raises `TrainingError` if the training of "lm" has not ended.
    """
    require_trained(recipe, out, "lm")
    model = assemble(recipe, out)
    check_ours(target, MODEL)
    row_end = newline(model).half()
    torch.nn.Module.to(model, torch.float16)
    with written_folder(target) as part:
        write_weights(part / "newline.safetensors", {"image_newline": row_end})
        write_llava(part, model, build_tokenizer())
