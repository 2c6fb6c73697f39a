"""Ctrl-C and SIGTERM: one line that the same command goes on, and it does."""

import io
import os
import signal
import sys
import time

import pytest

from tokensieve import cli
from toys.fusion_toys import rows_of, toy, write_rows
from toys.quick import few
from toys.train_toys import toy_store

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


def started(arguments, said):
    """The command line in a process of its own, which says to the file `said`."""
    child = os.fork()
    if child == 0:
        code = 1
        os.setsid()  # a group of its own, as on a terminal
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job may be told to ignore it
        try:
            with said.open("wb") as file:
                os.dup2(file.fileno(), 2)
                sys.stdout = io.StringIO()
                sys.stderr = os.fdopen(2, "w", buffering=1)
                sys.argv = ["tokensieve", *map(str, arguments)]
                cli.main()
                code = 0
        except SystemExit as end:
            code = end.code or 0
        finally:
            os._exit(code)
    return child


def stopped(arguments, said, ready, number):
    """Start, wait until `ready()`, send the signal; the exit code and what was said."""
    child, end = started(arguments, said), time.monotonic() + 100
    while not ready() and time.monotonic() < end:
        time.sleep(0.002)
    os.killpg(child, number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said.read_text()


@pytest.fixture
def heard():
    """Ctrl-C is heard, also by a job in the background, which may be told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def lines(path):
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.parametrize("number", few([*CODES]), ids=NAMES.values())
def test_the_training_of_a_selector(number, run, tmp_path):
    store = toy_store(tmp_path / "store")
    command = ["train", "selector", "--features", store, "--holdout", "0", "--steps", "60"]
    for name in ("selector.depth=1", "reconstructor.depth=1", "train.batch=4", "run.log_every=1",
                 "run.save_every=1000", "train.normaliser_crops=16"):  # fmt: skip
        command += ["--set", name]
    assert run(*command, "--out", tmp_path / "whole")[0] == 0
    out = tmp_path / "parts"
    code, said = stopped(
        [*command, "--out", out], tmp_path / "said", lambda: lines(out / "log.jsonl") > 3, number
    )
    assert code == CODES[number]
    step = lines(out / "log.jsonl")
    last = said.splitlines()[-1]
    expected = f"stopped by {NAMES[number]}; the same command goes on from step {step} of 60"
    assert last == f"tokensieve: {expected}"
    assert "Traceback" not in said
    assert "Aborted" not in said
    assert [p.name for p in out.glob("checkpoint-*")] == [f"checkpoint-{step:09d}"]
    assert not list(out.glob(".*"))
    assert run(*command, "--out", out)[0] == 0
    for name in ("selector/model.safetensors", "reconstructor/model.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_the_training_of_a_projector(run, tmp_path):
    loaded = toy()
    loaded.model.save_pretrained(tmp_path / "toy")
    loaded.processor.save_pretrained(tmp_path / "toy")
    file, images = write_rows(tmp_path, rows_of())
    command = ["train", "fusion", "--model", tmp_path / "toy", "--data", file, "--images", images,
               "--preset", "stage2-lora", "--steps", "30"]  # fmt: skip
    for name in ("train.batch=4", "train.per_device=2", "run.workers=1", "run.log_every=1",
                 "run.save_every=1000", "lora.rank=2"):  # fmt: skip
        command += ["--set", name]
    assert run(*command, "--out", tmp_path / "whole")[0] == 0
    out, number = tmp_path / "parts", signal.SIGINT
    code, said = stopped(
        [*command, "--out", out], tmp_path / "said", lambda: lines(out / "log.jsonl") > 3, number
    )
    assert code == 130
    step = lines(out / "log.jsonl")
    expected = f"stopped by Ctrl-C; the same command goes on from step {step} of 30"
    assert said.splitlines()[-1] == f"tokensieve: {expected}"
    assert [p.name for p in out.glob("checkpoint-*")] == [f"checkpoint-{step}"]
    assert not (out / "model").exists()
    assert run(*command, "--out", out)[0] == 0
    name = "model/model.safetensors"
    assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("number", few([*reversed(CODES)]), ids=["SIGTERM", "Ctrl-C"])
def test_an_extraction(number, run, tmp_path):
    command = ["extract", "--images", "synth:scene:60", "--chunk", "2", "--batch", "2"]
    out = tmp_path / "store"
    code, said = stopped(
        [*command, "--out", out], tmp_path / "said", lambda: list(out.glob("shard-*")), number
    )
    assert code == CODES[number]
    expected = f"stopped by {NAMES[number]}; the same command goes on from the last whole shard"
    assert said.splitlines()[-1] == f"tokensieve: {expected}"
    assert "Traceback" not in said
    assert not list(out.glob(".*"))
    assert not (out / "manifest.parquet").exists()
    whole = len(list(out.glob("shard-*")))
    assert 0 < whole < 30
    code, told, _ = run(*command, "--out", out, "--json")
    assert code == 0
    assert f'"read": {60 - 2 * whole},' in told


def test_a_second_signal_does_not_wait(heard):
    from tokensieve.data.progress import Stopped, resumable, whole_steps

    def twice():
        with resumable("step"), whole_steps() as stop:
            assert not stop()
            os.kill(os.getpid(), signal.SIGINT)
            assert stop()
            with pytest.raises(Stopped):
                os.kill(os.getpid(), signal.SIGTERM)
            raise Stopped("here")

    with pytest.raises(SystemExit) as end:
        twice()
    assert end.value.code == 143
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with whole_steps() as stop:  # nothing of it is left
        assert not stop()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 7), (signal.SIGTERM, 143)])
def test_a_loaders_worker_outlives_ctrl_c(heard, number, code):
    """It reaches every process of the terminal, while the training still wants its step."""
    from tokensieve.data.progress import resumable, whole_steps

    with resumable("step"), whole_steps() as stop:
        worker = os.fork()
        if worker == 0:
            os.kill(os.getpid(), number)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == code
        assert not stop()


def test_what_a_signal_breaks_is_no_traceback(capsys):
    from tokensieve.data.progress import resumable, whole_steps

    def broken(number):
        with resumable("checkpoint"), whole_steps():
            if number:
                os.kill(os.getpid(), number)
            raise RuntimeError("DataLoader worker exited unexpectedly")

    with pytest.raises(SystemExit) as end:
        broken(signal.SIGTERM)
    assert end.value.code == 143
    assert capsys.readouterr().err.endswith("goes on from the last whole checkpoint\n")
    with pytest.raises(RuntimeError, match="DataLoader"):
        broken(None)


def test_other_processes_do_not_wait_and_stay_quiet(monkeypatch, capsys):
    from tokensieve.data.progress import resumable, whole_steps

    monkeypatch.setenv("RANK", "1")

    def once():
        with resumable("step"), whole_steps(False):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    with pytest.raises(SystemExit) as end:
        once()
    assert end.value.code == 143
    assert capsys.readouterr().err == ""


def test_a_command_that_ends_in_an_error_says_one_line(capsys):
    from tokensieve.data.progress import run_to_the_end
    from tokensieve.errors import ConfigError

    def work():
        raise ConfigError("Expected this.\nGot that.")

    assert run_to_the_end(work, "record") == 2
    assert capsys.readouterr().err == "error: Expected this. Got that.\n"
    assert run_to_the_end(lambda: None, "record") == 0
