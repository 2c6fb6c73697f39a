"""`tokensieve train fusion`: both stages on a generated set, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch

from tokensieve.data.llava.write import write_llava
from tokensieve.data.synth import generate
from tokensieve.hf.load import load_model
from tokensieve.hf.sieve import sieve
from toys.fusion_toys import plain, rows_of, toy, write_rows

QUICK = (
    "--set", "train.batch=4", "--set", "train.per_device=2", "--set", "run.workers=0",
    "--set", "run.log_every=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A set of 8 generated pictures, and a toy model as a folder."""
    folder = tmp_path_factory.mktemp("small")
    write_llava(folder, 8)
    loaded = toy()
    loaded.model.save_pretrained(folder / "toy")
    loaded.processor.save_pretrained(folder / "toy")
    return folder


def losses(told):
    lines = Path(json.loads(told)["log"]).read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.slow
def test_nano_through_both_stages(run, small, tmp_path):
    """Stage 1 on captions, then stage 2 whole or by LoRA; the folder answers under a sieve."""
    images = ("--images", small / "images")
    code, out, err = run(
        "train", "fusion", "--model", "nano", "--blocks", 3, "--data", small / "captions.json",
        *images, "--out", tmp_path / "1", "--preset", "stage1", "--steps", 6, *QUICK,
    )  # fmt: skip
    assert code == 0, err
    found = losses(out)
    assert len(found) == 6
    assert min(found[-2:]) < 0.8 * found[0]
    assert "step 6 of 6: loss" in err
    for preset in ("stage2", "stage2-lora"):
        code, out, err = run(
            "train", "fusion", "--model", "nano", "--blocks", 3, "--projector", tmp_path / "1",
            "--data", small / "instruct.json", *images, "--out", tmp_path / preset, "--preset",
            preset, "--steps", 6, *QUICK, "--set", "train.lr=5e-4", "--set", "train.llm_lr=1e-3",
        )  # fmt: skip
        assert code == 0, err
        found = losses(out)
        assert min(found[-2:]) < 0.8 * found[0]
        loaded = load_model(str(tmp_path / preset / "model"))
        assert loaded.model.config.fusion.tokens == 64
        picture = generate("scene", 0).image
        inputs = loaded.processor(
            text=["<image>Count the objects.<answer>"], images=[picture], return_tensors="pt"
        )
        with sieve(loaded.model, "divprune", keep=0.25):
            answer = loaded.model.generate(**inputs, max_new_tokens=4)
        assert answer.shape[1] > inputs["input_ids"].shape[1]
    assert (tmp_path / "stage2-lora" / "adapter" / "adapter_model.safetensors").is_file()


def test_a_fused_model_goes_on(run, small, tmp_path):
    file, images = write_rows(tmp_path, rows_of())
    command = (
        "train", "fusion", "--model", small / "toy", "--data", file, "--images", images,
        "--preset", "stage2", "--steps", 2, *QUICK,
    )  # fmt: skip
    code, out, err = run(*command, "--out", tmp_path / "o")
    assert code == 0, err
    assert run(*command, "--out", tmp_path / "o")[0] == 0
    code, _, err = run(*command, "--out", tmp_path / "o", "--seed", 1)
    assert code == 2
    assert "It differs in seed (0, not 1)" in err
    before = load_model(str(small / "toy")).model.state_dict()
    after = load_model(json.loads(out)["model"]).model.state_dict()
    assert before.keys() == after.keys()
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])


def test_a_model_learns_under_a_sieve_with_its_own_projector(run, small, tmp_path):
    loaded = plain()
    loaded.model.save_pretrained(tmp_path / "plain")
    loaded.processor.save_pretrained(tmp_path / "plain")
    file, images = write_rows(tmp_path, rows_of())
    command = (
        "train", "fusion", "--model", tmp_path / "plain", "--kind", "own", "--data", file,
        "--images", images, "--preset", "stage2-lora", "--steps", 3, *QUICK, "--set",
        "lora.rank=2", "--sieve", "random", "--keep", "4..16",
    )  # fmt: skip
    code, out, err = run(*command, "--out", tmp_path / "o")
    assert code == 0, err
    lines = [json.loads(line) for line in (tmp_path / "o/log.jsonl").read_text().splitlines()]
    assert all(4 <= line["keep"] <= 16 for line in lines)
    after = load_model(json.loads(out)["model"]).model
    assert type(after) is type(loaded.model)
    code, _, err = run(*command, "--kernel", 2, "--out", tmp_path / "o")
    assert code == 2
    assert "Expected --kind own alone" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "stage3"), "Did you mean 'stage2'"),
        (("--set", "train.lr"), "Expected section.field=value"),
        (("--steps", "0"), "Expected `train.steps` of at least 1"),
        (("--parallel", "zero4"), "Did you mean 'zero3'"),
        (("--kernel", "2"), "Expected no --kernel for"),
        (("--data", "no.json"), "Expected conversations as JSON in no.json"),
        (("--images", "nowhere"), "Expected a folder of pictures"),
        (("--projector", "nowhere"), "Expected a projector at nowhere"),
        (("--set", "train.batch=3"), "Expected train.per_device to divide the 3 rows"),
        (("--set", "train.batch=64"), "Expected at least 64 rows, one batch"),
        (("--set", "data.max_length=9"), "10 too long"),
        (("--sieve", "divprun", "--keep", "0.5"), "Did you mean 'divprune'"),
        (("--sieve", "divprune"), "Expected a budget for 'divprune'"),
        (("--keep", "0.5"), "Expected a method beside sieve.keep=0.5"),
        (("--sieve", "random", "--keep", "0.9..0.1"), "Put the smaller one first"),
        (("--sieve", "fastv", "--keep", "0.5"), "Expected train.checkpointing=false for 'fastv'"),
        (("--config", "no.json"), "Expected settings as JSON in no.json"),
        (("--model", "nowhere/at/all"), "nowhere/at/all"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, message, run, small, tmp_path):
    file, images = write_rows(tmp_path, rows_of())
    code, _, err = run(
        "train", "fusion", "--model", small / "toy", "--data", file, "--images", images,
        "--preset", "stage2", *QUICK, "--out", tmp_path / "o", *arguments,
    )  # fmt: skip
    assert code == 2
    assert message in err
    assert len([line for line in err.splitlines() if line.startswith("tokensieve:")]) == 1
    assert not (tmp_path / "o").exists()


def test_settings_are_listed_with_what_they_do(run):
    code, out, _ = run("train", "fusion", "--list-settings")
    assert code == 0
    assert "train.batch=128  Rows of an optimiser step, over all processes." in out
    assert "lora.rank=128" in out
