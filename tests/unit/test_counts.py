"""Counts that a picture's own tokens decide: the mask as it stands, and budgets on average."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from families.tiny import build
from tokensieve.budget import count
from tokensieve.data.store.features import write_store
from tokensieve.errors import (
    ConfigError,
    InputError,
    NonFiniteError,
    UnknownNameError,
    WeightsError,
)
from tokensieve.functional.counts import (
    SHARES,
    adaptive_counts,
    mask_counts,
    rounded_share,
    threshold_at,
)
from tokensieve.functional.worth import diverse_order, first_of
from tokensieve.hf.families.fingerprint import encoder_info
from tokensieve.hf.sieve import compress, encode
from tokensieve.methods.base import Method
from tokensieve.methods.registry import get_method
from tokensieve.nn.ranking import calibrate
from tokensieve.nn.selector import Selector, SelectorConfig
from tokensieve.train.calibration import selector as command
from tokensieve.types import EncoderInfo, VisionTokens

ENCODER = EncoderInfo("toy", 16, -1, 2, 2, 32, (6, 10))


def make(rule: str = "diverse", encoder: EncoderInfo = ENCODER) -> Selector:
    torch.manual_seed(0)
    return Selector(SelectorConfig(encoder=encoder, depth=1, rule=rule)).eval()


def crops(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 60, 16, generator=torch.Generator().manual_seed(seed))


def adaptive(selector: Selector) -> Method:
    return get_method("selector", weights=selector, counts="adaptive").bind(ENCODER)


@pytest.mark.parametrize("percent", [1, 5, 29, 30, 50, 55, 57, 100])
def test_shares_are_rounded_as_fractions_not_as_floats(percent: int) -> None:
    n = torch.arange(2000)
    exact = [Fraction(percent, 100) * i for i in range(2000)]
    for to, want in (
        ("down", [math.floor(x) for x in exact]),
        ("half up", [math.floor(x + Fraction(1, 2)) for x in exact]),
        ("up", [math.ceil(x) for x in exact]),
    ):
        assert rounded_share(n, percent / 100, to).tolist() == want


def test_mask_counts_what_is_above_zero_up_to_the_budget() -> None:
    logits = torch.tensor([[1.0, -1, 2, 3, -2], [-1.0, -1, -1, -1, -1], [1.0, 1, 1, -1, -1]])
    valid = torch.ones(3, 5, dtype=torch.bool)
    valid[0, 3] = False  # not real: does not count
    assert mask_counts(logits, torch.tensor([3, 4, 2]), valid).tolist() == [2, 1, 2]
    assert mask_counts(logits, torch.tensor([4, 5, 0]), valid).tolist() == [4, 5, 0]  # all, none


def test_mask_as_it_stands_is_kept() -> None:
    selector, tokens = make("top"), crops(3)
    method = get_method("selector", weights=selector, counts="mask").bind(ENCODER)
    kept = method.reduce(VisionTokens(tokens, grid=(6, 10)), torch.tensor([59, 59, 59])).kept
    above = selector.scores(tokens, None, (6, 10)) > 0
    assert 0 < int(above.sum()) < above.numel()
    assert torch.equal(kept, above)


def test_adaptive_counts_stop_at_the_first_token_worth_too_little() -> None:
    worth = torch.tensor([[-9.0, 3, 2, 1, 2, 0], [5.0, 4, 3, 2, 1, 0], [5.0, -1, -1, -1, -1, -1]])
    valid = torch.ones(3, 6, dtype=torch.bool)
    threshold = torch.tensor([1.5, -8.0, 0.0])
    for asked, want in (
        (3, [3, 6, 2]),
        (2, [3, 4, 1]),
        (4, [3, 6, 2]),
        (6, [6, 6, 6]),
        (0, [0] * 3),
    ):
        counts = torch.full((3,), asked)
        assert adaptive_counts(worth, threshold, counts, valid).tolist() == want


def test_threshold_lies_between_its_neighbours_in_the_table() -> None:
    table = tuple(-float(i) for i in range(len(SHARES)))
    shares = torch.tensor([*SHARES, (SHARES[3] + SHARES[4]) / 2, 0.001, 0.99])
    want = torch.tensor([*table, -3.5, 0.0, table[-1]])
    assert_close(threshold_at(table, shares), want, atol=1e-4, rtol=0)


def test_the_order_is_that_of_the_rule() -> None:
    tokens, weight = crops(2), torch.randn(2, 60, generator=torch.Generator().manual_seed(1))
    valid = torch.ones(2, 60, dtype=torch.bool)
    order, worth = diverse_order(tokens, weight, valid, 10)
    assert order[0, 0] == weight[0].argmax()
    assert_close(worth[:, 0], weight.amax(-1))
    chosen = order[0, :4]
    apart = 1 - torch.cosine_similarity(tokens[0, order[0, 4]], tokens[0, chosen])
    assert_close(worth[0, 4], weight[0, order[0, 4]] + apart.min().log(), atol=1e-5, rtol=1e-5)
    assert first_of(order, torch.tensor([4, 0]), valid).sum(-1).tolist() == [4, 0]


@pytest.mark.parametrize("rule", ["top", "diverse"])
def test_calibrated_crops_keep_the_share_on_average(rule: str) -> None:
    selector, tokens = make(rule), crops(200)
    found = calibrate(selector, torch.split(tokens, 64))
    assert found == selector.config.thresholds
    assert list(found) == sorted(found, reverse=True)
    for share in (0.1, 0.2, 0.22, 0.5):
        asked = count(share, 60)
        counts = adaptive(selector).reduce(
            VisionTokens(tokens, grid=(6, 10)), torch.full((200,), asked)
        ).counts_B  # fmt: skip
        assert abs(float(counts.float().mean()) - asked) < 0.35, share
        assert counts.unique().numel() > 1


def test_thresholds_go_through_files(tmp_path: Path) -> None:
    selector = make()
    calibrate(selector, [crops(20)])
    selector.save_pretrained(tmp_path)
    again = Selector.from_pretrained(tmp_path)
    assert again.config == selector.config
    assert json.loads((tmp_path / "config.json").read_text())["thresholds"]


def test_command_calibrates_a_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make().save_pretrained(tmp_path / "old")
    write_store(tmp_path / "f", crops(30), ENCODER)
    arguments = ["--selector", str(tmp_path / "old"), "--features", str(tmp_path / "f")]
    assert command.main([*arguments, "--out", str(tmp_path / "new"), "--rule", "top"]) == 0
    assert "keep 0.1: worth above" in capsys.readouterr().out
    new = Selector.from_pretrained(tmp_path / "new").config
    assert (new.rule, len(new.thresholds)) == ("top", len(SHARES))
    assert Selector.from_pretrained(tmp_path / "old").config.thresholds == ()
    write_store(tmp_path / "g", crops(3), replace(ENCODER, depth=7))
    assert command.main([*arguments[:3], str(tmp_path / "g")]) == 2
    assert "depth=2. Got depth=7" in capsys.readouterr().err


def test_wrong_use_is_named() -> None:
    with pytest.raises(
        WeightsError, match=r"Got none\. Measure them.*tokensieve\.train\.calibration\.selector"
    ):
        adaptive(make())
    with pytest.raises(WeightsError, match=r"whose sign says nothing\. Use counts='adaptive'"):
        get_method("selector", weights=make(), counts="mask").bind(ENCODER)
    selector = make()
    calibrate(selector, [crops(5)])
    with pytest.raises(WeightsError, match=r"Expected the rule 'diverse'.*Got 'top'"):
        get_method("selector", weights=selector, rule="top", counts="adaptive").bind(ENCODER)
    with pytest.raises(UnknownNameError, match=r"Unknown counts 'adaptiv'\. Did you mean"):
        get_method("selector", counts="adaptiv")
    with pytest.raises(ConfigError, match=rf"Expected `thresholds` as {len(SHARES)} numbers, or"):
        replace(selector.config, thresholds=(1.0, 2.0))
    with pytest.raises(InputError, match="at least one batch"):
        calibrate(make(), [])
    with pytest.raises(NonFiniteError, match="to calibrate on"):
        calibrate(make(), [crops(2) * torch.nan])


@pytest.mark.parametrize("pool", ["crop", "prompt"])
def test_a_sieve_reports_what_was_kept(pool: str) -> None:
    tiny = build("llava")
    info = encoder_info(tiny.model).at_embeds()
    selector = Selector(SelectorConfig(encoder=info, heads=2, rule="diverse")).eval()
    encoded = encode(tiny.model, tiny.inputs([1, 2]))
    calibrate(selector, [rows[None].float() for rows in encoded.images])
    method = get_method("selector", weights=selector, counts="adaptive")
    short = compress(tiny.model, encoded, method, 0.4, pool=pool)
    images = [i for prompt in short.report.calls[0].prompts for i in prompt.images]
    kept = sum(len(crop.kept) for image in images for crop in image.crops)
    assert short.report.kept_tokens == kept
    rows = sum(int((ids == encoded.placeholder).sum()) for ids in short.inputs["input_ids"])
    assert rows == kept
    whole = compress(tiny.model, encoded, method, 1.0)
    assert whole.report.kept_tokens == whole.report.visual_tokens
