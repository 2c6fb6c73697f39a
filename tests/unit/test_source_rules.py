"""No code of a checkpoint is ever asked for, and no result stands in the order of a set."""

import ast

import pytest

from unit.source_rules import SOURCE, asks_for_trust, in_set_order, modules

RULES = [asks_for_trust, in_set_order]


@pytest.mark.parametrize("rule", RULES)
def test_our_source_keeps_it(rule) -> None:
    found = [
        f"{path.relative_to(SOURCE)}:{node.lineno}"
        for path in modules()
        for node in rule(ast.parse(path.read_text()))
    ]
    assert not found


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
    ],
)  # fmt: skip
def test_each_rule_can_be_broken(rule, broken, right) -> None:
    assert list(rule(ast.parse(broken)))
    assert not list(rule(ast.parse(right)))
