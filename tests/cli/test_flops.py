"""`tokensieve flops`: counts from sizes alone."""

import json

import pytest

from tokensieve.assets import asset_path
from tokensieve.cost.flops import sampler_macs, selector_paper_macs


def rows(run, *options):
    code, out, err = run("flops", *options, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)["rows"]


def test_the_papers_convention_is_the_papers_formula(run):
    options = ("--model", "llava-next-7b", "--convention", "selector")
    found = rows(run, *options, "--keep", 640, "--keep", "1")
    assert found[0]["stages"] == {
        "selection": sampler_macs(2880), "prefill": selector_paper_macs(640)
    }  # fmt: skip
    assert found[1]["stages"] == {"selection": 0, "prefill": selector_paper_macs(2880)}


def test_every_stage_but_the_chosen_ones_costs_what_it_did(run):
    full, less = rows(run, "--keep", "1", "--keep", "0.25", "--text", 10, "--new", 1)
    assert full["stages"]["encoder"] == less["stages"]["encoder"]
    assert full["stages"]["selection"] == 0 < less["stages"]["selection"]
    assert full["kv_bytes"] * 730 == less["kv_bytes"] * 2890  # tokens left: 720 and 10 others


def test_weights_say_how_large_a_selector_is(run):
    """Nano's, three layers of 128, beside a default one of the encoder's own sizes."""
    folder = asset_path("selector-nano")
    own, default = (
        rows(run, "--model", "nano", "--keep", 0.2, *more)[0]["stages"]["selection"]
        for more in (("--weights", folder), ())
    )
    assert 0 < own < default


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--convention", "other"), "Known: exact, selector, stf"),
        (("--model", "./nowhere"), "no such directory"),
        (("--model", "llava"), "llava-next-7b"),
        (("--keep", "2.5"), "Expected `keep`"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(run, options, said):
    code, out, err = run("flops", *options)
    assert (code, out) == (2, "")
    assert said in err


def test_tables_fit_a_terminal(run):
    for options in ((), ("--papers",), ("--convention", "stf")):
        code, out, _ = run("flops", *options)
        assert code == 0
        assert max(map(len, out.splitlines())) <= 80
