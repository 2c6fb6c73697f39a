"""What `make test` leaves out is breadth: each contract, method and family is in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from families.tiny import NAMES
from tokensieve.methods.registry import method_names
from toys.quick import few, one_of_each

CONTRACTS = Path(__file__).resolve().parents[1] / "contract"


@pytest.fixture
def contracts(collected):
    """The tests of contracts, if all of them are part of this run."""
    found = [item for item in collected if item.path.parent == CONTRACTS]
    files = {path.name for path in CONTRACTS.glob("test_*.py")}
    if {item.path.name for item in found} < files:
        pytest.skip("needs a run of all contracts")
    return found


def quick(items):
    return [item for item in items if not item.get_closest_marker("slow")]


def values(items):
    """Every value that is a parameter of one of these tests."""
    found = [v for i in items if hasattr(i, "callspec") for v in i.callspec.params.values()]
    return {value for value in found if isinstance(value, str)}


def test_every_contract_is_in_the_quick_run(contracts) -> None:
    left = {item.path.name for item in contracts} - {item.path.name for item in quick(contracts)}
    assert not left, f"contracts that `make test` leaves out: {sorted(left)}"


@pytest.mark.parametrize(
    ("kind", "names"), [("method", method_names()), ("family", NAMES)], ids=["methods", "families"]
)
def test_every_one_is_in_the_quick_run(contracts, kind, names) -> None:
    left = sorted(set(names) - values(quick(contracts)))
    assert not left, f"no contract of `make test` has this {kind}: {left}"


def test_a_matrix_keeps_every_value(contracts) -> None:
    """Each test over methods or families shows every value of theirs in the quick run."""
    groups: dict[str, list[pytest.Item]] = {}
    for item in contracts:
        if item.get_closest_marker("one_of_each"):
            groups.setdefault(item.nodeid.partition("[")[0], []).append(item)
    assert groups
    for name, items in groups.items():
        left = values(items) - values(quick(items))
        assert not left, f"{name} has no quick case of {sorted(left)}"


def test_one_of_each_takes_few_and_every_value() -> None:
    cases = [
        {"method": m, "family": f, "pool": p} for m in range(9) for f in range(4) for p in "ab"
    ]
    taken = [cases[number] for number in sorted(one_of_each(cases))]
    assert len(taken) == 9
    for key, count in (("method", 9), ("family", 4), ("pool", 2)):
        found = [case[key] for case in taken]
        assert len(set(found)) == count
        assert max(map(found.count, found)) - min(map(found.count, found)) <= 1
    assert one_of_each([]) == set()


def test_few_marks_the_rest() -> None:
    first, second, third = few("abc", 2)
    assert (first, second, third.values) == ("a", "b", ("c",))
    assert [mark.name for mark in third.marks] == ["slow"]
