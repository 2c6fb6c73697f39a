"""The method "selector": binding to an encoder, and its rules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tokensieve.errors import (
    ConfigError,
    EncoderMismatchError,
    NonFiniteError,
    UnknownNameError,
    UnsupportedError,
    WeightsError,
)
from tokensieve.functional.topk import topk_mask
from tokensieve.methods.registry import get_method
from tokensieve.nn import shipped
from tokensieve.nn.config import TrainedBy
from tokensieve.nn.selector import Selector, SelectorConfig
from tokensieve.types import EncoderInfo, Site, VisionTokens

ENCODER = EncoderInfo("toy", 16, -1, 2, 2, 32, (4, 5))


@pytest.fixture
def selector() -> Selector:
    torch.manual_seed(0)
    return Selector(SelectorConfig(encoder=ENCODER, depth=1)).eval()


@pytest.fixture
def vision() -> VisionTokens:
    generator = torch.Generator().manual_seed(2)
    return VisionTokens(torch.randn(3, 20, 16, generator=generator), grid=(4, 5))


def test_weights_from_a_folder(tmp_path: Path, selector: Selector, vision: VisionTokens) -> None:
    selector.save_pretrained(tmp_path)
    method = get_method("selector", weights=str(tmp_path)).bind(ENCODER)
    counts = torch.tensor([3, 8, 20])
    want = topk_mask(selector.scores(vision.tokens), counts, vision.valid_BL)
    assert torch.equal(method.reduce(vision, counts).kept, want)


def test_weights_for_another_encoder(selector: Selector) -> None:
    method = get_method("selector", weights=selector)
    with pytest.raises(EncoderMismatchError, match=r"width=16\. Got width=32"):
        method.bind(replace(ENCODER, width=32))
    with pytest.raises(EncoderMismatchError, match=r"layer=2. Got layer=1"):
        method.bind(replace(ENCODER, layer=-2))


def test_a_fine_tuned_copy_of_the_encoder_is_welcome(selector: Selector) -> None:
    bound = get_method("selector", weights=selector).bind(replace(ENCODER, layer=2))
    assert bound.selector is selector  # type: ignore[attr-defined]


def test_weights_say_at_which_site_they_read(selector: Selector) -> None:
    model = replace(ENCODER, embed_width=24)
    behind = Selector(SelectorConfig(encoder=model.at_embeds(), depth=1)).eval()
    bound = get_method("selector", weights=behind, rule="top").bind(model)
    assert (bound.site, bound.rule) == (Site.EMBEDS, "top")  # type: ignore[attr-defined]
    again = replace(bound, weights=selector).bind(model)  # type: ignore[call-arg]
    assert again.site is Site.FEATURES


def test_no_shipped_selector_says_how_to_get_one() -> None:
    with pytest.raises(EncoderMismatchError, match="tokensieve train selector"):
        get_method("selector").bind(ENCODER)


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selector: Selector) -> Path:
    """A package with weights for the toy encoder, others by name, and a stranger's."""
    for name, estimator in (("selector-toy", "explore"), ("selector-toy--gumbel", "gumbel")):
        by = TrainedBy("surprise" if estimator == "explore" else "adaptive", estimator)
        one = Selector(replace(selector.config, trained_by=by))
        one.save_pretrained(tmp_path / name)
    other = replace(ENCODER, width=32)
    Selector(SelectorConfig(encoder=other, depth=1)).save_pretrained(tmp_path / "selector-o--mine")
    monkeypatch.setattr(shipped.resources, "files", lambda _: tmp_path)
    return tmp_path


def by_of(**options: object) -> str:
    bound = get_method("selector", **options).bind(ENCODER)
    return bound.trained_for().by  # type: ignore[union-attr]


def test_shipped_weights_are_chosen_by_name_and_say_their_objective(
    assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert by_of() == "objective surprise (ours, not the papers'), estimator explore"
    assert by_of(weights="gumbel").startswith("objective adaptive (Adaptive Vision Token Selection")
    assert by_of(weights=assets / "selector-toy").startswith("objective surprise")
    with pytest.raises(WeightsError, match=r"encoder 'toy' of width 16: 'gumbel'\. Got 'gumbl'"):
        get_method("selector", weights="gumbl").bind(ENCODER)
    with pytest.raises(WeightsError, match=r"Got 'mine'"):  # ships, for another encoder
        get_method("selector", weights="mine").bind(ENCODER)
    with pytest.raises(WeightsError, match=r"width 24: none ships\. Got 'gumbel'"):
        get_method("selector", weights="gumbel").bind(replace(ENCODER, width=24))
    monkeypatch.chdir(assets)  # a folder of that name comes first
    Selector(SelectorConfig(encoder=ENCODER, depth=1)).save_pretrained(assets / "gumbel")
    assert by_of(weights="gumbel") == "not said"


def test_what_ships_in_the_package_says_that_its_objective_is_ours() -> None:
    for folder in shipped.folders():
        config = Selector.from_pretrained(folder).config
        assert config.trained_by is not None, folder
        assert str(config.trained_by.objective) in (folder / "README.md").read_text("utf-8")


def test_missing_folder() -> None:
    with pytest.raises(WeightsError, match="Expected a folder"):
        get_method("selector", weights="./nowhere").bind(ENCODER)
    with pytest.raises(WeightsError, match=r"or a hub name .* Got 'nowhere'"):
        get_method("selector", weights=Path("nowhere")).bind(ENCODER)


def test_unbound(vision: VisionTokens) -> None:
    with pytest.raises(UnsupportedError, match=r"Call bind\(encoder\) first"):
        get_method("selector").reduce(vision, torch.tensor([1, 1, 1]))


def test_numbers_that_end_in_no_score(selector: Selector, vision: VisionTokens) -> None:
    bound, counts = get_method("selector", weights=selector).bind(ENCODER), torch.tensor([1, 1, 1])
    tokens = vision.tokens.clone()
    tokens[1, 3] = torch.inf
    with pytest.raises(NonFiniteError, match="finite visual tokens at the site 'features'"):
        bound.reduce(replace(vision, tokens=tokens), counts)
    padded = replace(vision, tokens=tokens, valid=torch.isfinite(tokens).all(-1))
    assert bound.reduce(padded, counts).counts_B.tolist() == [1, 1, 1]
    with pytest.raises(NonFiniteError, match=r"finite scores of finite tokens\. .*float32 tokens"):
        bound.reduce(replace(vision, tokens=vision.tokens * 1e30), counts)


def test_unknown_rule() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown rule 'tip'\. Did you mean 'top'"):
        get_method("selector", rule="tip")


def test_loaded_weights_have_no_json(selector: Selector) -> None:
    with pytest.raises(ConfigError, match=r"'weights' as a plain value\. Got a Selector"):
        get_method("selector", weights=selector).options()


def test_rule_of_the_weights_is_the_default(selector: Selector, vision: VisionTokens) -> None:
    counts = torch.tensor([6, 6, 6])
    gated = Selector(replace(selector.config, rule="gated")).eval()
    gated.load_state_dict(selector.state_dict())
    methods = {
        name: get_method("selector", weights=weights, rule=rule).bind(ENCODER)
        for name, weights, rule in [
            ("stored", gated, None), ("named", selector, "gated"), ("top", gated, "top"),
        ]
    }  # fmt: skip
    masks = {name: method.reduce(vision, counts).kept for name, method in methods.items()}
    assert torch.equal(masks["stored"], masks["named"])
    # random weights are undecided: the gate covers, ranking does not
    assert not torch.equal(masks["stored"], masks["top"])


def test_diverse_weighs_error_distance_and_crowd(selector: Selector, vision: VisionTokens) -> None:
    """The definition with exponents of the config; the spread of a dimension does not count."""
    torch.nn.init.uniform_(selector.std, 0.5, 2.0)
    crowded = replace(vision, tokens=vision.tokens + 2.0)
    made = Selector(replace(selector.config, rule="diverse", trust=2.0, crowd=0.7)).eval()
    made.load_state_dict(selector.state_dict())
    kept = get_method("selector", weights=made).bind(ENCODER).reduce(
        crowded, torch.tensor([4, 4, 4])
    ).kept  # fmt: skip
    scores = made.scores(crowded.tokens, None, (4, 5)).detach().exp().double()
    for row, mask in enumerate(kept):
        x = (crowded.tokens[row] / selector.std).double()
        apart = 1 - torch.cosine_similarity(x[:, None], x[None], dim=-1)
        alike = (1 - apart / 0.3).clamp(0, 1).sum(1)
        cost = scores[row] ** 2 * alike**0.7
        chosen = [int(cost.argmax())]
        while len(chosen) < 4:
            left = cost * apart[:, chosen].amin(1)
            left[chosen] = -1
            chosen.append(int(left.argmax()))
        assert mask.nonzero()[:, 0].tolist() == sorted(chosen)


def test_crops_that_share_a_budget_are_one_choice(selector: Selector, vision: VisionTokens) -> None:
    """A crop that repeats another gets nothing of a shared budget while there is anything new."""
    made = Selector(replace(selector.config, rule="diverse")).eval()
    made.load_state_dict(selector.state_dict())
    bound = get_method("selector", weights=made).bind(ENCODER)
    twice = replace(vision, tokens=vision.tokens[[0, 0, 1]])
    kept = bound.reduce_pool([twice], 20)[0].kept
    assert int(kept.sum()) == 20
    assert not bool((kept[0] & kept[1]).any())
    alone = bound.reduce(twice, torch.tensor([10, 10, 10])).kept
    assert torch.equal(alone[0], alone[1])


def test_keeping_all_asks_nothing(
    selector: Selector, vision: VisionTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = get_method("selector", weights=selector).bind(ENCODER)
    monkeypatch.setattr(Selector, "scores", None)  # calling it would fail
    assert bool(bound.reduce(vision, torch.tensor([20, 20, 20])).kept.all())
    with pytest.raises(TypeError):
        bound.reduce(vision, torch.tensor([20, 20, 19]))


def test_half_precision_features(selector: Selector, vision: VisionTokens) -> None:
    method = get_method("selector", weights=selector).bind(ENCODER)
    half = replace(vision, tokens=vision.tokens.half())
    assert method.reduce(half, torch.tensor([4, 4, 4])).counts_B.tolist() == [4, 4, 4]


def worded(selector: Selector, words: float) -> Selector:
    made = Selector(replace(selector.config, rule="diverse", words=words)).eval()
    made.load_state_dict(selector.state_dict())
    return made


def test_words_go_on_in_a_shared_budget_over_crops_of_several_grids(
    selector: Selector, vision: VisionTokens
) -> None:
    bound = get_method("selector", weights=worded(selector, 1e9)).bind(ENCODER)
    generator = torch.Generator().manual_seed(4)
    other = VisionTokens(torch.randn(1, 6, 16, generator=generator), grid=(2, 3))
    first, second = bound.reduce_pool([vision, other], 9)
    rows = torch.cat([first.kept.view(-1, 5).flatten(), second.kept.flatten()])
    assert int(rows.sum()) == 9
    # without end: from the first token on to the end of its row before another row begins
    for row in [*first.kept.view(-1, 5), *second.kept.view(-1, 3)]:
        places = row.nonzero()[:, 0].tolist()
        assert places == list(range(places[0], places[-1] + 1)) if places else True
    whole = [row for row in first.kept.view(-1, 5) if bool(row.all())]
    assert whole or any(bool(row.all()) for row in second.kept.view(-1, 3))


def test_words_need_a_grid_and_change_nothing_where_they_are_off(
    selector: Selector, vision: VisionTokens
) -> None:
    counts = torch.tensor([6, 7, 8])
    plain, words = (
        get_method("selector", weights=worded(selector, w)).bind(ENCODER) for w in (0.0, 50.0)
    )
    free = replace(vision, grid=None)
    assert torch.equal(words.reduce(free, counts).kept, plain.reduce(free, counts).kept)
    assert torch.equal(words.reduce_pool([free], 9)[0].kept, plain.reduce_pool([free], 9)[0].kept)
    assert not torch.equal(words.reduce(vision, counts).kept, plain.reduce(vision, counts).kept)


def test_words_may_be_asked_for_beside_the_weights(
    selector: Selector, vision: VisionTokens
) -> None:
    counts, plain = torch.tensor([6, 7, 8]), worded(selector, 0.0)
    plain.config = replace(plain.config, thresholds=(-1.0,) * 17)
    asked = get_method("selector", weights=plain, words=50.0).bind(ENCODER)
    stored = get_method("selector", weights=worded(selector, 50.0)).bind(ENCODER)
    assert torch.equal(asked.reduce(vision, counts).kept, stored.reduce(vision, counts).kept)
    assert plain.config.words == 0
    assert get_method("selector", weights=plain, words=0.0).bind(ENCODER).selector is plain  # type: ignore[attr-defined]
    with pytest.raises(WeightsError, match="weights with thresholds for counts='adaptive'"):
        get_method("selector", weights=plain, words=1.0, counts="adaptive").bind(ENCODER)
    with pytest.raises(ConfigError, match=r"`words` of 0 or more\. Got -1"):
        get_method("selector", words=-1.0)


def test_weights_first_used_in_inference_mode_serve_a_training_later() -> None:
    """They are kept between calls; made in inference mode they refuse to be differentiated."""
    shipped._load.cache_clear()
    with torch.inference_mode():
        loaded = shipped._load(shipped.folders()[0])
    kept = [*loaded.parameters(), *loaded.buffers()]
    assert kept
    assert not any(one.is_inference() for one in kept)
