"""Bad input on the command line: one clear line on stderr, exit code 2, nothing half-written."""

import json
import logging
import shutil
import time

import pytest
from huggingface_hub import constants
from PIL import Image

from tokensieve.errors import ConfigError
from tokensieve.files import written_whole
from tokensieve.hf.models.nano import NANO


@pytest.fixture
def refused(run, tmp_path):
    """Run a command that must be refused; the one line it says."""

    def refusing(*arguments):
        before = sorted(tmp_path.iterdir())
        code, out, err = run(*arguments)
        assert code == 2
        assert out == ""
        assert err.count("\n") == 1, err
        assert err.startswith("tokensieve: ")
        assert "Traceback" not in err
        assert sorted(tmp_path.iterdir()) == before
        return err

    return refusing


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        ("0", "Expected `keep` as a fraction in (0, 1]"),
        ("1.7", "Got 1.7. Did you mean 0.017 or 2?"),
        ("nan", "Got nan"),
        ("inf", "Got inf"),
        ("-1", "Got -1"),
        ("half", "Got 'half'"),
    ],
)
def test_keep_out_of_range(refused, picture, model_dir, keep, said):
    options = ("--model", model_dir, "--method", "stride", "--keep", keep)
    assert said in refused("ask", picture, "what", *options)


def test_unknown_methods(refused, picture):
    assert "Did you mean 'selector'?" in refused("ask", picture, "what", "--method", "selektor")
    said = refused("ask", picture, "what", "--compare", "full,randon")
    assert "Unknown method 'randon'. Did you mean 'random'? Known: aim" in said


def test_pictures_that_are_none(refused, tmp_path):
    assert "Got nothing" in refused("ask", tmp_path / "gone.png", "what")
    (tmp_path / "empty.png").touch()
    assert "Got an empty file" in refused("ask", tmp_path / "empty.png", "what")
    (tmp_path / "eps.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    assert "begins with b'%!PS-Ado'" in refused("ask", tmp_path / "eps.png", "what")
    (tmp_path / "text.png").write_text("no picture")
    assert "begins with b'no pictu'" in refused("ask", tmp_path / "text.png", "what")
    assert "Got the directory" in refused("ask", tmp_path, "what")


def test_a_picture_beyond_the_limit(refused, picture):
    said = refused("ask", picture, "what", "--max-pixels", "10")
    assert "Expected at most 10 pixels" in said
    assert "--max-pixels" in said


def test_a_truncated_picture(refused, tmp_path, picture):
    cut = tmp_path / "cut.png"
    cut.write_bytes(picture.read_bytes()[:2000])
    assert "Got a damaged one" in refused("ask", cut, "what")


def test_an_animation_is_read_by_its_first_frame_and_says_so(run, tmp_path, model_dir):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    options = ("--model", model_dir, "--method", "stride", "--json", "--max-new-tokens", 1)
    code, out, err = run("ask", tmp_path / "a.gif", "what", *options)
    assert code == 0
    assert "note: " in err
    assert "the first frame is used" in err
    assert json.loads(out)["visual_tokens"] == 16


def test_a_single_pixel_is_a_picture(run, tmp_path, model_dir):
    Image.new("RGB", (1, 1), "red").save(tmp_path / "dot.png")
    options = ("--model", model_dir, "--method", "stride", "--json", "--max-new-tokens", 1)
    code, out, _ = run("ask", tmp_path / "dot.png", "what", *options)
    assert code == 0
    assert json.loads(out)["kept_tokens"] == 6


def test_questions_that_do_not_fit(refused, picture, model_dir):
    assert "Expected a question" in refused("ask", picture, " ", "--model", model_dir)
    said = refused("ask", picture, "what is <image>", "--model", model_dir)
    assert "without the placeholder <image>" in said


def test_models_that_are_none(refused, picture, tmp_path):
    said = refused("ask", picture, "what", "--model", "./gone")
    assert "Expected a model directory with config.json. Got no such directory: ./gone." in said
    assert "Got a directory without it" in refused("ask", picture, "what", "--model", tmp_path)


def test_a_hub_out_of_reach(refused, picture):
    said = refused("ask", picture, "what", "--model", "nobody/no-such-model")  # HF_HUB_OFFLINE=1
    assert "Expected 'nobody/no-such-model' on the hub, in its cache, or as a model dir" in said
    assert "Got no connection to the hub" in said


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--model", "Got no connection to the hub, no copy in the cache and no such directory"),
        ("--weights", "Check the name and the network"),
    ],
)
def test_a_hub_that_is_tried_again_and_again(refused, picture, monkeypatch, tmp_path, option, said):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    logger = logging.getLogger("huggingface_hub")
    monkeypatch.setattr(logger, "level", logging.WARNING)
    assert said in refused("ask", picture, "what", option, "nobody/no-such-model")


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("processor_config.json", "Got LlavaProcessor without patch_size. Save it there"),
        ("tokenizer.json", "Expected a model that Transformers can load in"),
        ("preprocessor_config.json", "Expected a model that Transformers can load in"),
        ("model.safetensors", "Expected a model that Transformers can load in"),
    ],
)
def test_a_model_directory_that_is_not_whole(refused, picture, tmp_path, gone, said):
    folder = tmp_path / "part"
    shutil.copytree(NANO, folder)
    (folder / gone).unlink()
    assert said in refused("ask", picture, "what", "--model", folder)


def test_a_directory_of_the_embedded_model(run, picture):
    assert run("ask", picture, "what", "--model", NANO, "--max-new-tokens", 1)[0] == 0


@pytest.mark.parametrize("spoilt", [{"vision_config": 5}, {"text_config": {"hidden_size": "x"}}])
def test_a_config_that_makes_no_sense(refused, picture, tmp_path, spoilt):
    folder = tmp_path / "spoilt"
    shutil.copytree(NANO, folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **spoilt}))
    said = refused("ask", picture, "what", "--model", folder)
    assert "Expected a model that Transformers can load in" in said


def test_a_model_without_visual_tokens(refused, picture, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path / "text"
    LlamaForCausalLM(
        LlamaConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
            vocab_size=9,
        )
    ).save_pretrained(folder)  # fmt: skip
    said = refused("ask", picture, "what", "--model", folder)
    assert "Expected a vision-language model. Got 'llama'" in said


def test_truncated_and_missing_weights(refused, picture, model_dir, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "broken"
    shutil.copytree(model_dir, folder)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    said = refused("ask", picture, "what", "--model", folder)
    assert "Expected a model that Transformers can load" in said
    tensors = load_file(model_dir / "model.safetensors")
    tensors.pop(next(name for name in tensors if "multi_modal_projector" in name))
    save_file(tensors, file, metadata={"format": "pt"})
    said = refused("ask", picture, "what", "--model", folder)
    assert "Expected all weights" in said


def test_selector_weights_for_another_encoder(refused, picture, model_dir):
    """The shipped selector was trained for nano's encoder, which this model does not have."""
    said = refused("ask", picture, "what", "--model", model_dir, "--method", "selector")
    assert "Expected a selector for the encoder" in said


def test_selector_weights_that_are_none(refused, picture, model_dir, tmp_path):
    options = ("--model", model_dir, "--method", "selector", "--weights", tmp_path / "gone")
    assert "Expected" in refused("ask", picture, "what", *options)


def test_choices_of_sieve(refused, picture, model_dir):
    for option in ("--positions", "--pool"):
        said = refused(
            "ask", picture, "what", "--model", model_dir, "--method", "stride", option, "x"
        )
        assert "'x'" in said


def test_overlays_that_cannot_be_written(refused, picture, tmp_path, model_dir):
    where = tmp_path / "gone" / "a.png"
    assert "Expected a directory at" in refused("ask", picture, "what", "--overlay", where)
    assert "Got the directory" in refused("ask", picture, "what", "--overlay", tmp_path)
    before = picture.read_bytes()
    assert "another file than the picture" in refused("ask", picture, "what", "--overlay", picture)
    assert picture.read_bytes() == before
    said = refused("ask", picture, "what", "--overlay", tmp_path / "a.xyz")
    assert "Expected a picture format" in said


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(UnicodeEncodeError), written_whole(target) as part:
        part.write_text("new, but for its end \udc00", encoding="utf-8")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
    with written_whole(target) as part:
        part.write_text("new")
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(ConfigError, match="Got the directory"), written_whole(tmp_path):
        pass
