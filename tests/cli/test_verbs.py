"""The other verbs, and how light the command line starts."""

import json
import subprocess
import sys

from tokensieve import __version__
from tokensieve.methods.registry import method_class, method_names


def test_version(run):
    assert run("--version") == (0, f"tokensieve {__version__}\n", "")


def test_methods_come_from_the_registry(run):
    code, out, err = run("methods", "--json")
    assert (code, err) == (0, "")
    rows = json.loads(out)
    assert [row["name"] for row in rows] == list(method_names())
    for row in rows:
        kind = method_class(row["name"])
        assert row["site"] == kind.site_text()
        assert row["trained"] is kind.trained
        assert set(row["needs"]) == kind.needs
        assert row["paper"] == kind.paper
        assert row["about"].endswith(".")
        assert not row["about"].endswith((" of.", " by.", " in.")), row["name"]  # a mark cut off


def test_the_table_of_methods_is_readable_when_piped(run):
    code, out, _ = run("methods")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    for name in method_names():
        assert name in out


def test_usage_errors_exit_with_2(run):
    code, out, err = run("ask", "a.png")
    assert (code, out) == (2, "")
    assert "QUESTION" in err
    assert run("aks")[0] == 2


def test_help_names_the_verbs_and_imports_nothing_heavy():
    program = (
        "import sys; sys.argv = ['tokensieve', '--help']\n"
        "import tokensieve.cli\n"
        "try: tokensieve.cli.main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'numpy', 'PIL', 'rich') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    for verb in ("ask", "methods", "demo"):
        assert verb in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_view_says_what_it_lacks(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, out, err = run("view", "--methods", "stride,full")
    assert (code, out) == (2, "")
    assert "pip install 'tokensieve[view]'" in err
    code, _, err = run("view", "--methods", "nothing")
    assert code == 2
    assert "Unknown method 'nothing'" in err
