"""The fuzz targets' own tools can fail, and do spoil what they are given."""

from __future__ import annotations

import json
import time
import warnings

import pytest
from hypothesis import given

from fuzz.common import EXAMPLES, Hang, bounded, fuzzed, json_values, spoilt


def test_a_hang_and_a_warning_fail():
    with pytest.raises(Hang), bounded(0.05):
        time.sleep(5)
    with pytest.raises(UserWarning, match="noise"), bounded():
        warnings.warn("noise", stacklevel=1)


def test_files_are_spoilt_in_many_ways():
    seeds, seen = [b"0123456789", b"abcdefghij"], set()

    @fuzzed
    @given(data=spoilt(seeds))
    def look(data):
        seen.add(data)

    look()
    assert len(seen) > min(EXAMPLES, 1000) / 2
    assert seen & set(seeds), "whole files are tried, too"


def test_values_are_what_json_can_hold():
    lengths = set()

    @fuzzed
    @given(value=json_values())
    def look(value):
        lengths.add(len(json.dumps(value)))

    look()
    assert len(lengths) > 10
