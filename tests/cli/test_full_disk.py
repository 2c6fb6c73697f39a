"""Commands on a disk that is too small or read-only: a real one, where root runs the tests."""

import shutil
import subprocess

import pytest

from toys.fusion_toys import rows_of, toy, write_rows
from toys.train_toys import toy_store


def mounted(*arguments):
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False)
    return done.returncode == 0


@pytest.fixture
def disk(tmp_path):
    """A disk of 64 KiB, and a function that mounts it anew with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None or not mounted("-t", "tmpfs", "-o", "size=64k", "x", folder):
        pytest.skip("only root may mount")
    try:
        yield folder, lambda options: mounted("-o", f"remount,{options}", folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def selector(tmp_path):
    told = ["selector.depth=1", "reconstructor.depth=1", "train.batch=4", "run.save_every=1"]
    settings = [part for name in told for part in ("--set", name)]
    store = toy_store(tmp_path / "store", 16)
    return ["train", "selector", "--features", store, "--steps", 2, "--holdout", 0, *settings]


def fusion(tmp_path):
    loaded = toy()
    loaded.model.save_pretrained(tmp_path / "toy")
    loaded.processor.save_pretrained(tmp_path / "toy")
    file, images = write_rows(tmp_path, rows_of())
    told = ["train.batch=4", "train.per_device=2", "run.workers=0", "run.save_every=1"]
    settings = [part for name in told for part in ("--set", name)]
    return ["train", "fusion", "--model", tmp_path / "toy", "--data", file, "--images", images,
            "--preset", "stage2", "--steps", 2, *settings]  # fmt: skip


COMMANDS = {
    "extract": lambda _: ["extract", "--images", "synth:scene:4", "--chunk", 2],
    "selector": selector,
    "fusion": fusion,
}


def one_line(code, out, err):
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("tokensieve: Expected ")
    assert "Traceback" not in err
    return last


@pytest.mark.parametrize("name", COMMANDS)
def test_the_disk_fills_up(name, run, disk, tmp_path):
    folder, remount = disk
    command = [*COMMANDS[name](tmp_path), "--out", folder / "out"]
    said = one_line(*run(*command))
    assert "No space left on device" in said or "unexpected pos" in said
    assert "Make room, or write elsewhere" in said
    assert not list(folder.rglob(".*"))
    assert remount("size=64m")
    code, _, err = run(*command)  # the same goes on
    assert code == 0, err


@pytest.mark.parametrize("name", COMMANDS)
def test_the_disk_is_read_only(name, run, disk, tmp_path):
    folder, remount = disk
    assert remount("ro")
    said = one_line(*run(*COMMANDS[name](tmp_path), "--out", folder / "out"))
    assert "Read-only file system" in said


def test_an_overlay(run, disk, picture, model_dir):
    folder, remount = disk
    target = folder / "a.png"
    target.write_bytes(b"old")
    (folder / "full").write_bytes(bytes(58_000))
    command = ("ask", picture, "what", "--model", model_dir, "--method", "stride",
               "--overlay", target)  # fmt: skip
    code, _, err = run(*command)
    assert code == 2
    assert "No space left on device" in err.splitlines()[-1]
    assert target.read_bytes() == b"old"
    assert sorted(p.name for p in folder.iterdir()) == ["a.png", "full"]
    assert remount("ro")
    assert "Expected a writable directory" in one_line(*run(*command))
