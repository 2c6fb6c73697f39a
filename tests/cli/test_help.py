"""`--help` is whole at any width: no option's text is cut, and what it prints runs."""

import inspect
import shlex

import pytest
import typer

from tokensieve.cli import app

ROOT = typer.main.get_command(app)


def verbs(command, *path):
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from verbs(below, *path, name)


VERBS = dict(verbs(ROOT))


def words(text):
    return " ".join(text.split())


@pytest.fixture
def help_of(run, monkeypatch):
    def asking(path, columns):
        monkeypatch.setenv("COLUMNS", str(columns))
        code, out, err = run(*path, "--help")
        assert (code, err) == (0, "")
        return out

    return asking


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("path", VERBS, ids=" ".join)
def test_every_text_is_whole(help_of, path, columns):
    out = help_of(path, columns)
    assert max(map(len, out.splitlines())) <= columns
    assert "\u2026" not in out
    assert "\x1b" not in out
    told = words(out)
    for param in VERBS[path].params:
        assert param.help, param.name
        assert words(param.help) in told, param.name
        for flag in param.opts if param.param_type_name == "option" else [param.metavar]:
            assert flag in told
        default = param.show_default if isinstance(param.show_default, str) else param.default
        if default not in (None, False, "", ()) and not callable(default):
            assert f"[default: {default}" in told, param.name
    for name, below in getattr(VERBS[path], "commands", {}).items():
        first = words(inspect.cleandoc(below.help).split("\n\n")[0])
        assert f"{name} {first}" in told


def test_the_check_finds_a_text_that_is_cut(help_of, monkeypatch):
    """What typer alone would print."""
    monkeypatch.setattr(
        "tokensieve.cli.help._first_paragraph", lambda text: f"{(text or '')[:20]}..."
    )
    with pytest.raises(AssertionError):
        test_every_text_is_whole(help_of, (), 80)


def test_options_stand_in_groups(help_of):
    out = help_of(("ask",), 80)
    groups = [line for line in out.splitlines() if line.endswith(":") and line[0] != " "]
    assert groups == [
        "Arguments:", "Video:", "Model:", "Which tokens:", "Pictures:", "Answer:", "Output:",
        "Other:",
    ]  # fmt: skip


def test_a_default_is_said_once(help_of):
    for path in VERBS:
        told = words(help_of(path, 80))
        assert "[default: (" not in told
        assert "if not given" not in told


def test_the_default_device_is_said_of_nano_too(help_of):
    assert "[default: a GPU if there is one; for nano, cpu]" in words(help_of(("ask",), 80))


def test_what_two_verbs_share_is_declared_once():
    """The same flag of two `train` verbs, or of `ask` and `extract`, has the same text."""
    for pair in ((("train", "selector"), ("train", "fusion")), (("ask",), ("extract",))):
        first, second = ({p.opts[0]: p.help for p in VERBS[path].params} for path in pair)
        own = {"--preset", "--images", "--model", "--out", "--dtype", "--seed", "images"}
        shared = first.keys() & second.keys() - own
        assert len(shared) > 2
        assert {flag: first[flag] for flag in shared} == {flag: second[flag] for flag in shared}


def test_examples_run_as_printed(help_of, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [line.strip() for line in help_of((), 80).splitlines()]
    commands = [line for line in lines if line.startswith("tokensieve ") and "PICTURE" not in line]
    assert len(commands) == 4
    right = {"example:cluttered": "619", "example:page": "345"}
    for command in commands:
        arguments = shlex.split(command)[1:]
        if arguments == ["demo"]:  # test_demo.py runs it
            continue
        code, out, err = run(*arguments)
        assert (code, err) == (0, ""), command
        assert right.get(arguments[1] if len(arguments) > 1 else "", "") in out
