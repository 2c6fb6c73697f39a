"""Does another revision answer the same? `python -m lab.same REVISION`.

For a change of shape that must change nothing else. Every method of the registry answers about the
shipped pictures with the code of both revisions, each in a process of its own: kept sets, answers
and logits are held against each other bit for bit. Then every record, but for where weights lie.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokensieve.data.progress import run_to_the_end
from tokensieve.errors import InputError

# Run by both revisions, so it asks only for what users import.
ANSWERS = r"""
import hashlib, json
from PIL import Image
from tokensieve import load_nano, method_names, sieve
from tokensieve.assets import asset_path

def short(tensors):
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]

out = {}
for variant in ("llava", "llava-next"):
    model, processor = load_nano(variant)
    for path in sorted(asset_path("pictures").glob("*.png")):
        picture = Image.open(path)
        inputs = processor(images=picture, text="<image>What is KR?<answer>", return_tensors="pt")
        for method in method_names():
            for positions in ("keep", "renumber"):
                key = f"{variant} {path.stem} {method} {positions}"
                try:
                    with sieve(model, method, keep=0.5, positions=positions) as report:
                        told = model.generate(**inputs, max_new_tokens=4, do_sample=False,
                                              output_logits=True, return_dict_in_generate=True)
                    kept = [i.kept for c in report.calls for p in c.prompts for i in p.images]
                    out[key] = [short([told.sequences]), short(told.logits),
                                json.dumps(kept, default=lambda t: t.tolist())]
                except Exception as error:
                    out[key] = [type(error).__name__, str(error)]
print(json.dumps(out))
"""


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and compare; ends with an error where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("revision", help="of git, such as a commit or a tag")
    revision = parser.parse_args(arguments).revision
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git("worktree", "add", "--quiet", "--detach", str(tree), revision)
        try:
            theirs = answers(tree / "src")
            differ = list(other_records(tree / "results", Path("results")))
        finally:
            git("worktree", "remove", "--force", str(tree))
    ours = answers(Path("src"))
    differ += [key for key in sorted({*theirs, *ours}) if theirs.get(key) != ours.get(key)]
    refused = sum(len(found) == 2 for found in ours.values())
    sys.stdout.write(
        f"{len(ours)} calls ({refused} refused in the same words), {len(differ)} differ\n"
    )
    if differ:
        raise InputError(f"Expected the same as {revision}. Got others: {', '.join(differ[:9])}.")


def git(*arguments: str) -> None:
    """Run git here."""
    subprocess.run(["git", *arguments], check=True)


def answers(source: Path) -> dict[str, list[str]]:
    """What the code in `source` answers, by call."""
    done = subprocess.run(
        [sys.executable, "-c", ANSWERS], stdout=subprocess.PIPE, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(source.resolve()), "HF_HUB_OFFLINE": "1",
             "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


def other_records(theirs: Path, ours: Path) -> Iterator[str]:
    """Records that are not the same; a folder of weights may have moved, its hash may not."""
    names = {path.relative_to(root) for root in (theirs, ours) for path in root.rglob("*.json")}
    for name in sorted(names):
        both = (theirs / name, ours / name)
        if not all(path.is_file() for path in both) or len({bare(path) for path in both}) > 1:
            yield str(name)


def bare(path: Path) -> str:
    """A record without the places of its weights, and without the hash that they went into."""

    def pair(found: list[tuple[str, Any]]) -> dict[str, Any]:
        return {k: place(v) for k, v in found if k not in ("weights", "identity")}

    def place(value: Any) -> Any:
        plain = isinstance(value, str) and value.startswith("nano+")
        return "nano+" if plain else value

    found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=pair)
    return json.dumps(found, sort_keys=True)


if __name__ == "__main__":
    raise SystemExit(run_to_the_end(main, "nothing"))
