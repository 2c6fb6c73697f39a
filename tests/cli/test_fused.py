"""The commands on a folder of a fused LLaVA."""

import json

import pytest

from tokensieve.hf.fused import fuse
from toys.llava_tiny import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def fused_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fused")
    made = fuse(tiny_model(), tiny_processor(), blocks=[1, 2])
    made.model.save_pretrained(folder)
    made.processor.save_pretrained(folder)
    return folder


def test_ask(run, picture, fused_dir, tmp_path):
    sheet = tmp_path / "sheet.png"
    code, out, err = run(
        "ask", picture, "what is it", "--max-new-tokens", 3, "--model", fused_dir, "--json",
        "--method", "divprune", "--keep", "0.5", "--compare", "full", "--overlay", sheet,
    )  # fmt: skip
    assert (code, err) == (0, "")
    got = json.loads(out)
    assert (got["kept_tokens"], got["visual_tokens"]) == (2, 4)
    assert [answer["kept_tokens"] for answer in got["compare"]] == [4]
    assert sheet.exists()


@pytest.mark.parametrize(("site", "width"), [("features", 64), ("embeds", 16)])
def test_extract(run, picture, fused_dir, tmp_path, site, width):
    code, out, err = run(
        "extract", "--images", picture, "--out", tmp_path / "store", "--model", fused_dir,
        "--site", site, "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["tokens"] == 4
    told = json.loads((tmp_path / "store" / "store.json").read_text())
    assert (told["encoder"]["width"], told["encoder"]["grid"]) == (width, [2, 2])


def test_a_method_inside_the_encoder_is_refused_in_one_line(run, picture, fused_dir):
    code, out, err = run("ask", picture, "what", "--model", fused_dir, "--method", "tome")
    assert (code, out) == (2, "")
    assert "of 'fused_llava'" in err
