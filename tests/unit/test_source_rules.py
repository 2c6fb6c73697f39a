"""No code of a checkpoint is ever asked for, no result stands in the order of a set, and functions,
their signatures and files are of a size to read."""

import ast

import pytest

from unit.source_rules import (
    COMMANDS,
    EXEMPT,
    LONGEST_FILE,
    LONGEST_FUNCTION,
    asks_for_trust,
    in_set_order,
    is_long,
    long_functions,
    long_verbs,
    many_arguments,
    modules,
    named,
)

RULES = [asks_for_trust, in_set_order, long_functions, long_verbs, many_arguments]
NOT_OF_VERBS = (long_functions, many_arguments)  # a verb's signature is the list of its options


def found_by(rule) -> set[str]:
    """Where our source breaks a rule."""
    return {
        f"{named(path)}:{getattr(node, 'name', node.lineno)}"
        for path in modules()
        if not (rule in NOT_OF_VERBS and named(path).startswith(COMMANDS))
        for node in rule(ast.parse(path.read_text(encoding="utf-8")))
    }


@pytest.mark.parametrize("rule", RULES)
def test_our_source_keeps_it(rule) -> None:
    excused = {where for name, where in EXEMPT if name == rule.__name__}
    found = found_by(rule)
    assert not found - excused, "beyond what EXEMPT gives a reason for"
    assert not excused - found, "EXEMPT gives a reason for what is not there"


def test_our_files_are_short() -> None:
    long = [named(path) for path in modules() if is_long(path.read_text(encoding="utf-8"))]
    assert not long, f"more than {LONGEST_FILE} lines: split them where they fall apart"


def test_every_exemption_is_of_a_rule() -> None:
    assert {name for name, _ in EXEMPT} <= {rule.__name__ for rule in RULES}
    assert all(EXEMPT.values())


LINES = "\n".join(["    x = 1"] * (LONGEST_FUNCTION - 1))  # and the line of `def`
EIGHT = "a, b, /, c, d, *e, f, g, **h"


def test_a_long_file_is_seen() -> None:
    assert is_long("x = 1\n" * (LONGEST_FILE + 1))
    assert not is_long("x = 1\n" * LONGEST_FILE)


@pytest.mark.parametrize(
    ("rule", "broken", "right"),
    [
        (asks_for_trust, "A.from_pretrained(x)", "A.from_pretrained(x, trust_remote_code=False)"),
        (asks_for_trust, "Auto.from_config(x, trust_remote_code=yes)", "Auto.to(x)"),
        (asks_for_trust, "partial(Auto.from_pretrained, x)", "partial(Auto.load, x)"),
        (
            asks_for_trust,
            "from other import Selector\nSelector.from_pretrained(x)",
            "from tokensieve.nn.selector import Selector\nSelector.from_pretrained(x)",
        ),
        (in_set_order, "{n for n in f(*info['mismatched_keys'])}", "min(info['missing_keys'])"),
        (in_set_order, "def f(x: set[str]):\n    for n in x: ...", "for n in sorted(set(x)): ..."),
        (in_set_order, "f'{set(a) - known}'", "f'{sorted(set(a) - known)}'"),
        (in_set_order, "s = {a, b}\n', '.join(s)", "s = [a, b]\n', '.join(s)"),
        (in_set_order, "[n for n in a.keys() ^ b]", "any(n for n in a.keys() ^ b)"),
        (in_set_order, "s = set(a)\n[*s]", "s = set(a)\n{*s}"),
        (in_set_order, "next(iter(s or set(a)))", "max(s or set(a))"),
        (long_functions, f"def f():\n{LINES}\n    y = 1", f"def f():\n{LINES}"),
        (long_functions, f"async def f():\n    'Says.'\n{LINES}", f"async def f():\n{LINES}"),
        (long_verbs, f"def f():\n{LINES}\n    y = 1\n    z = 1", f"def f(\n a\n):\n{LINES}"),
        (many_arguments, f"def f({EIGHT}): ...", "def f(a, b, /, c, d, *e, f, g): ..."),
        (many_arguments, f"class A:\n def f(self, {EIGHT}): ...",
         "class A:\n def f(self, a, b, c, d, e, *, f, g): ..."),
    ],
)  # fmt: skip
def test_each_rule_can_be_broken(rule, broken, right) -> None:
    assert list(rule(ast.parse(broken)))
    assert not list(rule(ast.parse(right)))
