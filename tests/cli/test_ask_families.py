"""Checkpoints of many families on disk: `ask` and a sieve go through their own processor and chat
template."""

import json

import pytest
import torch
import transformers as tf
from packaging.version import Version

from tokensieve import load_model, sieve
from toys import checkpoints
from toys.extract_tiny import noise

pytestmark = pytest.mark.skipif(
    Version(tf.__version__) < Version("5.24"), reason="some of the families came with 5.24"
)


@pytest.mark.parametrize("name", checkpoints.FAMILIES)
@pytest.mark.one_of_each
def test_a_checkpoint_is_asked_through_its_processor_and_template(name, run, tmp_path):
    folder = checkpoints.save(name, tmp_path / "model")
    picture = noise(40, 24, seed=1)
    picture.save(tmp_path / "noise.png")
    positions = "renumber" if name == "exaone4_5" else "keep"
    loaded = load_model(str(folder))
    parts, model = checkpoints.FAMILIES[name], loaded.model
    assert type(loaded.processor).__name__ == parts.processor
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "w20 w21"}]}]
    text = loaded.processor.apply_chat_template(asked, add_generation_prompt=True)
    assert "user" in text
    assert "w20 w21" in text
    inputs = loaded.processor(images=[picture], text=[text], return_tensors="pt")
    inputs.pop("labels", None)  # PaliGemma's makes some: with labels logits are of the whole prompt
    with torch.no_grad():
        whole = model(**inputs).logits
        with sieve(model, "random", keep=1.0, positions=positions):
            assert torch.equal(model(**inputs).logits, whole)
        with sieve(model, "random", keep=0.5, positions=positions) as report:
            short = model(**inputs).logits
    assert whole.shape[1] - short.shape[1] == report.visual_tokens - report.kept_tokens > 0
    code, out, _ = run(
        "ask", tmp_path / "noise.png", "w20 w21", "--model", folder, "--method", "random",
        "--keep", "0.5", "--max-new-tokens", 2, "--positions", positions, "--json",
    )  # fmt: skip
    assert code == 0
    got = json.loads(out)
    assert (got["visual_tokens"], got["kept_tokens"]) == (report.visual_tokens, report.kept_tokens)
    assert got["prompt_tokens"] == short.shape[1]


def test_every_family_is_there_or_left_out_for_a_reason():
    """A family that gets a row in the tests gets a processor, or a word why it has none."""
    from families.sites import ALL

    out = {
        "pixtral_llava", "mistral3", "cohere2_vision", "lfm2_vl", "kimi_k25", "perception_lm",
        "fast_vlm", "molmo2", "minicpmv4_6", "video_llava", "qwen2_5_omni", "smolvlm", "got_ocr2",
        "aria", "fused_llava", "fused_siglip", "fused_internvl",
    }  # fmt: skip
    assert out.isdisjoint(checkpoints.FAMILIES)
    assert set(ALL) == out | set(checkpoints.FAMILIES)
