"""`tokensieve extract`: what it writes, what it says, and that launchers can share its work."""

import json
import os
import shutil

import pytest
import torch

from tokensieve.data.progress import Progress, clock
from tokensieve.data.store.features import FeatureStore
from tokensieve.data.synth import generate
from tokensieve.errors import QuestionWarning


def test_pictures_on_disk_and_generated_ones(run, picture, model_dir, tmp_path):
    (tmp_path / "pics").mkdir()
    shutil.copy(picture, tmp_path / "pics" / "a.png")
    (tmp_path / "pics" / "b.png").write_bytes(b"no")
    code, out, err = run(
        "extract", "--model", model_dir, "--images", tmp_path / "pics", "g=synth:scene:3",
        "--out", tmp_path / "store", "--pixels", "--json",
    )  # fmt: skip
    assert code == 0, err
    told = json.loads(out)
    assert (told["pictures"], told["crops"], told["tokens"], told["skipped"]) == (5, 4, 64, 1)
    assert told["skipped_first"][0][0] == "pics/b.png"
    assert told["pictures_per_second"] > 0
    assert "5 of 5 pictures" in err
    store = FeatureStore([tmp_path / "store"])
    assert store.sources == ("pics", "g")
    assert store.source_N.tolist() == [0, 1, 1, 1]
    assert store.batch(torch.tensor([0]), pixels=True).pixels.shape == (1, 3, 48, 48)


def test_the_summary_is_readable_and_a_second_run_has_nothing_to_do(run, tmp_path):
    command = ("extract", "--images", "synth:scene:3", "--out", tmp_path / "store")
    code, out, _ = run(*command)
    assert code == 0
    assert "3 pictures, 3 crops, 768 tokens" in out
    assert "0 duplicates by content, 0 skipped" in out
    code, out, _ = run(*command)
    assert code == 0
    assert "0 pictures read in this run" in out
    code, _, err = run(*command, "--site", "embeds")
    assert code == 2
    assert err.count("\n") == 1
    assert 'encoder.site="embeds" (there: "features")' in err


def test_processes_of_a_launcher_share_the_work(run, tmp_path, monkeypatch):
    command = ("extract", "--images", "synth:scene:4", "--out", tmp_path / "store", "--chunk", 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    code, out, _ = run(*command)
    assert (code, out) == (0, "Process 1 of 2 has done its share; others are still at theirs.\n")
    monkeypatch.setenv("RANK", "0")
    code, out, _ = run(*command)
    assert code == 0
    assert "2 pictures read in this run" in out
    monkeypatch.setenv("RANK", "first")
    assert run(*command)[0] == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--site", "pixels"), "Expected `--site` features, embeds or llm. Got 'pixels'."),
        (("--dtype", "int8"), "Unknown dtype 'int8'"),
        (("--compute", "int8"), "Unknown dtype to compute in 'int8'"),
        (("--device", "tpu:9"), "Expected a device of this machine"),
        (("--frames", "0"), "Expected `frames` of at least 1"),
        (("--model", "no/such/model"), "Expected a model"),
    ],
)
def test_errors_are_one_line(options, told, run, tmp_path):
    code, out, err = run("extract", "--images", "synth:scene:3", "--out", tmp_path / "s", *options)
    assert (code, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1
    assert not os.path.exists(tmp_path / "s")


def test_progress_tells_rate_and_time_left(capsys, monkeypatch):
    times = iter([0.0, 1.0, 11.0, 26.0])
    monkeypatch.setattr("tokensieve.data.progress.perf_counter", lambda: next(times))
    with Progress() as bar:
        bar(10, 130)
        bar(30, 130)
        bar(130, 130)
    assert capsys.readouterr().err == (
        "30 of 130 pictures, 2.0/s, 0:50 left\n130 of 130 pictures, 4.8/s\n"
    )
    assert clock(3723.4) == "1:02:03"


def test_what_was_skipped_can_be_tried_again(run, picture, tmp_path):
    (tmp_path / "pics").mkdir()
    shutil.copy(picture, tmp_path / "pics" / "a.png")
    (tmp_path / "pics" / "b.png").write_bytes(b"no")
    command = ("extract", "--images", tmp_path / "pics", "--out", tmp_path / "store")
    assert "The same command with --retry-skipped reads them again." in run(*command)[1]
    shutil.copy(picture, tmp_path / "pics" / "b.png")
    code, out, err = run(*command, "--retry-skipped")
    assert code == 0, err
    assert "1 duplicates by content, 0 skipped" in out
    assert "--retry-skipped" not in out


def test_nano_is_asked_trained_and_asked_again(run, tmp_path):
    """Conditional selection from end to end: questions, hidden states, a selector, an answer."""
    asked = [json.dumps({"image": f"{i % 2}.png", "question": f"What is K{i}?"}) for i in range(6)]
    for i in range(2):
        generate("plain", i, "train").image.save(tmp_path / f"{i}.png")
    (tmp_path / "asked.jsonl").write_text("\n".join(asked))
    command = ("extract", "--site", "llm", "--questions", tmp_path / "asked.jsonl",
               "--out", tmp_path / "store")  # fmt: skip
    code, _, err = run(*command)
    assert code == 2
    assert "Expected a layer with the site 'llm'" in err
    code, _, err = run(*command, "--layer", 1, "--images", "synth:scene:3")
    assert code == 2
    assert "Expected --questions FILE with --site llm" in err
    code, out, err = run(*command, "--layer", 1)
    assert code == 0, err
    assert "6 pictures, 6 crops, 1,536 tokens" in out
    code, _, err = run("train", "selector", "--features", tmp_path / "store", "--steps", 2,
                       "--out", tmp_path / "run", "--set", "train.batch=2")  # fmt: skip
    assert code == 0, err
    ask = ("ask", tmp_path / "0.png", "What is K0?", "--method", "conditional", "--keep", "0.5",
           "--weights", tmp_path / "run" / "selector", "--json")  # fmt: skip
    code, out, err = run(*ask, "--ask-first")
    assert (code, err) == (0, "")
    assert json.loads(out)["kept_tokens"] == 128
    with pytest.warns(QuestionWarning, match="Expected the question before the picture"):
        assert run(*ask)[0] == 0
