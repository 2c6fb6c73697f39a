"""Families of `more.py`: before the LLM and inside it, answered exactly as theory says."""

import pytest
import torch
import transformers as tf
from packaging.version import Version
from torch import nn
from torch.testing import assert_close

from contract import test_llm_signals as heard
from families import checks, inside
from families.checks import answer, ragged, shorten
from families.methods import ByFeatureNorm, ByNorm, Inside
from families.more import MORE, ROWLESS
from families.said import require_same, require_tokens
from families.tiny import build
from tokensieve.errors import ConfigError, UnsupportedError
from tokensieve.hf.families.fingerprint import encoder_info
from tokensieve.hf.families.table import family_of, is_listed, project
from tokensieve.hf.llm import cut
from tokensieve.hf.sieve import compress, encode, sieve
from tokensieve.types import Kind
from toys.quick import few

pytestmark = pytest.mark.skipif(
    Version(tf.__version__) < Version("5.24"), reason="some of them came with 5.24"
)
FUSED = ("kimi_k25",)  # no projection for queries alone
CUT = [name for name in MORE if name not in checks.STATEFUL]
every_family = pytest.mark.parametrize("name", few(list(MORE)))


@every_family
def test_it_is_exact_before_the_llm(name):
    tiny = build(name)
    assert is_listed(tiny.model)
    checks.check_before(tiny, shorten)
    checks.check_alone(tiny, ragged)
    checks.check_cache(tiny, shorten)


@every_family
def test_keep_all_is_the_model_itself(name):
    tiny = build(name)
    inputs = tiny.inputs([1, 2])
    tokens, logits = answer(tiny.model, inputs)
    with sieve(tiny.model, ByNorm(), 1.0) as report:
        same_tokens, same = answer(tiny.model, inputs)
    claim = f"keep=1 is not the identity on {name}"
    require_same(same, logits, claim)
    require_tokens(same_tokens, tokens, claim)
    assert report.kept_tokens == report.visual_tokens > 0
    if family_of(tiny.model).stages:
        inside.check_identity(tiny, 1)


@pytest.mark.parametrize(
    "kind", [Kind.LAST_ATTENTION, Kind.RECEIVED_ATTENTION, Kind.LAST_UNROTATED]
)
@pytest.mark.parametrize("name", few(CUT))
def test_a_cut_is_told_what_eager_attention_says(name, kind):
    """Projections with norms behind them, before heads come to the front or after, too."""
    if name in FUSED and kind is Kind.LAST_UNROTATED:
        with pytest.raises(UnsupportedError, match="Expected attention with a 'q_proj' layer"):
            heard.check(name, kind, 2, heard.REFERENCES[kind])
        return
    heard.check(name, kind, 2, heard.REFERENCES[kind])


@pytest.mark.parametrize("name", ["gemma3", "paligemma", "molmo2"])
def test_what_visual_tokens_say_of_those_behind_them_is_told(name, monkeypatch):
    """Where they see each other: attention as if all were causal is another."""
    heard.check(name, Kind.RECEIVED_ATTENTION, 2, heard.REFERENCES[Kind.RECEIVED_ATTENTION])
    heard.forget_masks(monkeypatch)
    with pytest.raises(AssertionError):
        heard.check(name, Kind.RECEIVED_ATTENTION, 2, heard.REFERENCES[Kind.RECEIVED_ATTENTION])


def test_layers_that_read_keys_of_others_are_not_cut(monkeypatch):
    """Gemma 4 in small forms: behind a cut they would read what is gone there."""
    tiny = build("gemma4")
    monkeypatch.setattr(tiny.model.base_model.language_model.config, "num_kv_shared_layers", 2)
    with pytest.raises(UnsupportedError, match="whose last 2 layers read those of layers before"):
        inside.cut(tiny.model, tiny.inputs([1]), Inside(), 1)


@pytest.mark.parametrize(("name", "wrong"), [("ernie4_5_vl", "_PLACES"), ("gemma4", "take_beside")])
def test_what_goes_along_with_the_tokens_is_cut_with_them(name, wrong, monkeypatch):
    """Ernie's kinds of experts, Gemma 4's embeddings for each layer: without their cut it fails."""
    inside.check_blocked(build(name), 1)
    broken = () if wrong == "_PLACES" else lambda rest, *_: rest
    monkeypatch.setattr(cut, wrong, broken)
    with pytest.raises((RuntimeError, IndexError)):
        inside.check_blocked(build(name), 1)


@every_family
def test_features_are_offered_only_where_they_make_the_rows(name):
    tiny = build(name)
    encoded = encode(tiny.model, tiny.inputs([1, 2]))
    if encoded.features is None:
        with pytest.raises(UnsupportedError, match="acts on 'embeds'"):
            compress(tiny.model, tiny.inputs([1]), ByFeatureNorm(), 0.4)
        return
    for features, rows, packing in zip(
        encoded.features, encoded.images, encoded.packings, strict=True
    ):
        embeds = project(tiny.model, encoded.family, features).flatten(0, 1)
        real = packing.origin_N >= 0
        assert_close(embeds[packing.origin_N[real]], rows[real])
        assert encoder_info(tiny.model).width == features.shape[-1]


def test_four_axes_are_no_text_row_and_three():
    tiny = build("hunyuan_vl")
    inputs = tiny.inputs([1])
    short = compress(tiny.model, inputs, ByNorm(), 0.4)
    whole = tiny.model._prepare_position_ids_for_generation(inputs["input_ids"], dict(inputs))
    assert len(whole) == 4
    taken = short.gather.index_BT.expand(4, 1, -1)
    assert torch.equal(short.inputs["position_ids"], whole.gather(-1, taken))


def test_positions_that_generate_drops_are_not_kept():
    tiny = build("exaone4_5")
    with pytest.raises(ConfigError, match=r"'renumber'.*drops position ids"):
        compress(tiny.model, tiny.inputs([1]), ByNorm(), 0.4)


def test_indicators_beside_the_rows_are_handed_over():
    """Ovis2: tokens around a picture whose embeddings come with the encoder's output."""
    tiny = build("ovis2")
    inputs = tiny.inputs([1])
    assert set(tiny.model.config.visual_indicator_token_ids) <= set(inputs["input_ids"][0].tolist())
    output = compress(tiny.model, inputs, ByNorm(), 0.4).inputs["mm_encoder_outputs"]["image"]
    wanted = encode(tiny.model, inputs).output.visual_indicator_features
    assert torch.equal(output.visual_indicator_features, wanted)


@pytest.mark.parametrize("name", ROWLESS)
def test_rows_that_are_not_where_they_should_be_are_said(name):
    model, pixels = ROWLESS[name]()
    inputs = {"input_ids": torch.tensor([[1, 150, 5]]), **pixels([1])}
    with pytest.raises(UnsupportedError, match="Expected"):
        compress(model, inputs, ByNorm(), 0.4)


def _of(kind, config):
    """A model without weights."""
    model = kind.__new__(kind)
    nn.Module.__init__(model)
    model.config = config
    return model


@pytest.mark.parametrize(
    ("kind", "config", "why"),
    [
        (tf.MllamaForConditionalGeneration, tf.MllamaConfig, "cross-attention layers"),
        (tf.IdeficsForVisionText2Text, tf.IdeficsConfig, "cross-attention layers"),
        (tf.Blip2ForConditionalGeneration, tf.Blip2Config, "Q-Former"),
        (tf.InstructBlipForConditionalGeneration, tf.InstructBlipConfig, "Q-Former"),
        (tf.Florence2ForConditionalGeneration, tf.Florence2Config, "encoder-decoder"),
        (tf.GitForCausalLM, tf.GitConfig, "no visual tokens"),
    ],
)
def test_why_a_model_cannot_be_served_is_said(kind, config, why):
    with pytest.raises(UnsupportedError, match=f"Got {kind.__name__}.*{why}"):
        family_of(_of(kind, config()))


def test_remote_code_is_told_from_a_class_of_transformers():
    remote = type(
        "InternVLChatModel", (tf.LlamaForCausalLM,), {"__module__": "transformers_modules.chat"}
    )
    with pytest.raises(UnsupportedError, match=r"a class of 'transformers_modules'.*'-hf'"):
        family_of(_of(remote, tf.LlamaConfig()))
