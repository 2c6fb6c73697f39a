"""Which cases the quick run takes: `make test` leaves out what is marked `slow`.

`pytest.mark.slow` marks a test or a case. Of a test marked `one_of_each` the quick run takes as few
cases as show every value of every parameter once, so each method and each family of a matrix is
there, if not each with each; the rest is marked slow.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pytest

Case = Mapping[str, Hashable]


def one_of_each(cases: Sequence[Case]) -> set[int]:
    """Numbers of cases (parameter -> value) in which every value comes up, each about as often."""
    every = [frozenset(case.items()) for case in cases]
    missing: set[tuple[str, Hashable]] = set().union(*every)
    used: Counter[tuple[str, Hashable]] = Counter()
    taken: set[int] = set()
    while missing:
        best = max(
            range(len(every)),
            key=lambda i: (len(every[i] & missing), -sum(used[pair] for pair in every[i]), -i),
        )
        taken.add(best)
        missing -= every[best]
        used.update(every[best])
    return taken


def mark_slow(items: Sequence[pytest.Item]) -> None:
    """Mark what `one_of_each` does not take. Cases that `apart` tells from others, such as those
    that are refused, are chosen from by themselves."""
    groups: dict[tuple[str, Hashable], list[tuple[pytest.Item, Case]]] = defaultdict(list)
    for item in items:
        marker = item.get_closest_marker("one_of_each")
        if marker is None or item.get_closest_marker("slow"):
            continue
        spec = item.callspec  # type: ignore[attr-defined]
        apart = marker.kwargs.get("apart", lambda **_: None)(**spec.params)
        case = {name: repr(value) for name, value in spec.params.items()}
        groups[item.nodeid.partition("[")[0], apart].append((item, case))
    for cases in groups.values():
        cases.sort(key=lambda case: case[0].nodeid)  # whatever order they run in
        taken = one_of_each([case for _, case in cases])
        for number, (item, _) in enumerate(cases):
            if number not in taken:
                item.add_marker(pytest.mark.slow)


def few(values: Sequence[Any], count: int = 1) -> list[Any]:
    """Values for `parametrize` of which the quick run takes the first `count`."""
    slow = [pytest.param(value, marks=pytest.mark.slow) for value in list(values)[count:]]
    return [*list(values)[:count], *slow]
