"""Pictures of `tokensieve ask`: several, those in the package, and what is refused in words."""

import json

import pytest
from PIL import Image

from tokensieve.data.synth.shipped import PICTURES
from tokensieve.errors import UnsupportedError
from tokensieve.evaluate.ask import Settings, ask
from tokensieve.evaluate.overlay import check_overlay, write_overlay
from tokensieve.evaluate.prepare import prepared
from tokensieve.hf.fused import fuse
from tokensieve.hf.models.loaded import Loaded
from toys.llava_tiny import tiny_model, tiny_processor

TINY = ("--method", "stride", "--keep", "0.5", "--max-new-tokens", 2, "--model")
ONE = "{% for m in messages %}<image> {{ m['content'][-1]['text'] }}{% endfor %}"
NONE = ONE.replace(
    "<image>",
    "{% if m['content'] | length > 2 %}{{ raise_exception('one at most') }}{% endif %}<image>",
)


def test_several_pictures_are_asked_about_together(run, picture, model_dir, tmp_path):
    sheet = tmp_path / "sheet.png"
    code, out, err = run(
        "ask", picture, picture, "what is it", *TINY, model_dir, "--json", "--overlay", sheet
    )
    assert (code, err) == (0, "")
    got = json.loads(out)
    assert (got["visual_tokens"], got["kept_tokens"]) == (32, 16)
    assert got["pictures"] == [str(picture)] * 2
    assert "picture" not in got
    run("ask", picture, "what is it", *TINY, model_dir, "--overlay", tmp_path / "one.png")
    with Image.open(sheet) as two, Image.open(tmp_path / "one.png") as one:
        assert two.width == one.width
        assert two.height > 1.5 * one.height


@pytest.mark.parametrize(("template", "got"), [(ONE, "a template that shows 1"), (NONE, "at most")])
def test_a_template_of_one_picture_is_refused_more(template, got):
    loaded = Loaded("tiny", tiny_model(), tiny_processor())
    loaded.processor.chat_template = template
    two = [Image.new("RGB", (48, 48))] * 2
    with pytest.raises(UnsupportedError, match=rf"takes 2 pictures in 'tiny'. Got .*{got}"):
        prepared(loaded, two, "what")


def test_nano_takes_several_and_says_what_it_learned_from(run):
    code, out, err = run("ask", "example:page", "example:scene", "Value of MW?", "--json")
    assert code == 0
    assert json.loads(out)["answer"] == "345"
    assert err == "tokensieve: note: 'nano' learned from one picture at a time; of several it " \
        "reads less well.\n"  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_in_the_package_needs_no_file(run, model_dir, name):
    code, out, err = run("ask", f"example:{name}", "what", *TINY, model_dir, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["picture"] == f"example:{name}"


def test_a_picture_without_a_question_lacks_the_question(run, picture):
    for given, said in {(picture,): "Put the question last", (): "argument 'QUESTION'"}.items():
        code, out, err = run("ask", *given, "--keep", "0.5")
        assert (code, out) == (2, "")
        assert said in err


def test_an_overlay_takes_one_picture_by_itself(tmp_path):
    loaded, picture = Loaded("tiny", tiny_model(), tiny_processor()), Image.new("RGB", (48, 48))
    answer = ask(loaded, picture, "what", "stride", Settings(keep=0.5, max_new_tokens=1))
    sheets = [tmp_path / "one.png", tmp_path / "list.png"]
    for sheet, pictures in zip(sheets, (picture, [picture]), strict=True):
        check_overlay(loaded, pictures, "what")
        write_overlay(sheet, loaded.processor, pictures, "what", [answer])
    assert sheets[0].read_bytes() == sheets[1].read_bytes()


def test_what_is_no_picture_is_refused_with_what_to_do(run, tmp_path):
    pdf = tmp_path / "a.png"  # by what it holds, not by what it is called
    pdf.write_bytes(b"%PDF-1.7 ...")
    for name, said in {
        pdf: "Got the PDF",
        "https://example.org/a.png": "Download it first",
        tmp_path: "`tokensieve extract` reads whole folders",
        "example:pages": "Unknown example 'pages'. Did you mean 'page'? Known: cluttered, mixed",
        tmp_path / "gone": "Without a file: example:page, example:cluttered",
    }.items():
        code, out, err = run("ask", "example:page", name, "what")
        assert (code, out) == (2, "")
        assert err.startswith("tokensieve: ")
        assert err.count("\n") == 1
        assert said in err


def test_an_overlay_that_cannot_be_is_refused_before_the_answer(run, picture, tmp_path):
    """Several tokens a cell lie on no grid."""
    made = fuse(tiny_model(), tiny_processor(), blocks=[1, 2], fused=2)
    made.model.save_pretrained(tmp_path / "fused")
    made.processor.save_pretrained(tmp_path / "fused")
    command = ("ask", picture, "what is it", *TINY, tmp_path / "fused")
    code, out, err = run(*command, "--overlay", tmp_path / "kept.png")
    assert (code, out) == (2, "")
    assert "whose tokens lie on no grid. Leave --overlay out." in err
    assert not (tmp_path / "kept.png").exists()
    assert run(*command)[0] == 0


def test_a_report_is_written_of_several_pictures(run, picture, model_dir, tmp_path):
    page = tmp_path / "kept.html"
    options = ("--method", "stride", "--compare", "full,conditional", "--report", page)
    code, out, err = run("ask", picture, picture, "what <b>is</b> it", *TINY, model_dir, *options)
    assert code == 0, err
    assert f"Report: {page}" in " ".join(out.split()).replace("- ", "-") or "kept.html" in out
    told = page.read_text()
    assert told.count("data:image/") == 2
    assert "what &lt;b&gt;is" in told
    code, _, err = run("ask", picture, "what", *TINY, model_dir, "--report", tmp_path / "a.png")
    assert code == 2
    assert "Name it .html" in err
