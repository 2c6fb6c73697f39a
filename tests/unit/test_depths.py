"""Mixture of depths: visual tokens that skip layers of the LLM and come back behind them."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import LlavaForConditionalGeneration

from tokensieve.errors import ConfigError, UnsupportedError, WeightsError
from tokensieve.hf.fused import FusedLlavaForConditionalGeneration, deepen, fuse
from tokensieve.hf.load import load_model
from tokensieve.hf.models.loaded import Loaded
from tokensieve.hf.sieve import sieve
from tokensieve.nn.depths import DepthsConfig, Routers, mixed
from tokensieve.train.fusion.base import load_base
from tokensieve.train.fusion.run import Data, train_fusion
from toys.extract_tiny import noise
from toys.fusion_toys import plain, rows_of, toy_recipe, write_rows

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5}
LAYERS = 4


def base() -> Loaded:
    """A LLaVA of four layers and 16 visual tokens a picture."""
    made = plain()
    config = deepcopy(made.model.config)
    config.text_config.num_hidden_layers = LAYERS
    torch.manual_seed(1)
    model = LlavaForConditionalGeneration(config)
    for weight in model.model.language_model.parameters():
        torch.nn.init.normal_(weight, std=0.3) if weight.ndim > 1 else None
    return Loaded("deep", model.eval(), made.processor)


def deep(kind: str = "p-mod", keep: float = 0.5) -> Loaded:
    """The same whose tokens skip layers, with routers that say something."""
    made = base()
    made = deepen(made.model, made.processor, kind, keep)
    for router in made.model.model.routers.layers.values():
        torch.nn.init.normal_(router.weight, std=1.0)
    return made


def inputs_of(loaded: Loaded, *texts: str) -> Any:
    texts = texts or ("<image>What is it", "<image>Is it red or is it blue")
    pictures = [[noise(60, 40, seed=i)] for i in range(len(texts))]
    return loaded.processor(images=pictures, text=list(texts), return_tensors="pt", padding=True)


def slow(model: Any, inputs: Any) -> list[torch.Tensor]:
    """Logits of each prompt without its padding: token by token, as the papers have it."""
    found, shares = [], model.config.depths.shares()
    llm, symmetric = model.model.language_model, model.config.depths_kind == "p-mod"
    features = model.model.get_image_features(inputs["pixel_values"], return_dict=True)
    for row, real in enumerate(inputs["attention_mask"].bool()):
        ids = inputs["input_ids"][row][real]
        hidden = llm.embed_tokens(ids)
        visual = (ids == model.config.image_token_id).tolist()
        hidden[torch.tensor(visual)] = features.pooler_output[row]
        for number, layer in enumerate(llm.layers):
            through = list(range(len(ids)))
            if number in shares:
                router = model.model.routers.layers[str(number)]
                scores = [float(router(one)) for one in hidden]
                ranked = sorted((i for i in through if visual[i]), key=lambda i: -scores[i])
                chosen = ranked[: max(1, int(shares[number] * sum(visual)))]
                through = [i for i in through if i in chosen or not visual[i]]
            at = torch.tensor(through)[None]
            turn = llm.rotary_emb(hidden[None], position_ids=at)
            mask = torch.full((len(through), len(through)), -torch.inf).triu(1)[None, None]
            made = layer(
                hidden[through][None], attention_mask=mask, position_ids=at,
                position_embeddings=turn,
            )[0]  # fmt: skip
            new = []
            for i, old in enumerate(hidden):
                out = made[through.index(i)] if i in through else old
                if number in shares and visual[i]:
                    weight = 1 + 0.2 * torch.tanh(torch.tensor(scores[i]))
                    if i in through:
                        out = old + weight * (out - old)
                    elif symmetric:
                        out = weight * old
                new.append(out)
            hidden = torch.stack(new)
        found.append(model.lm_head(llm.norm(hidden)))
    return found


def test_shares_by_hand() -> None:
    found = DepthsConfig(8, 32).shares()
    assert list(found) == list(range(8, 32))  # .5 + cos(7 pi / 31) / 2 is .879, above .85
    assert found[8] == pytest.approx(0.8445, abs=1e-4)
    assert found[31] == found[30] == 0.15
    assert DepthsConfig(8, 4).shares() == pytest.approx({1: 0.75, 2: 0.25, 3: 0.15})
    assert DepthsConfig(8, 6, "mod", 0.2).shares() == {1: 0.2, 3: 0.2, 5: 0.2}
    assert DepthsConfig(8, 6, "mod", 1.0).shares() == {}
    assert 0 not in DepthsConfig(8, 4, "p-mod", 0.1).shares()  # .6, but the first reads all


def test_a_router_chooses_by_hand() -> None:
    routers = Routers(DepthsConfig(2, 2, "mod", 0.5))
    with torch.no_grad():
        routers.layers["1"].weight.copy_(torch.tensor([[1.0, 0.0]]))
    hidden = torch.tensor([[9.0, 1.0, 3.0, 3.0, 2.0, 0.0], [0.5, -1.0, 0.0, 5.0, 5.0, 5.0]])
    hidden = torch.stack([hidden, torch.zeros_like(hidden)], -1)
    visual = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]).bool()
    chosen, weight = routers(1, hidden, visual)
    # floor(5 / 2) of five: the threes; floor(3 / 2) of three: the half
    assert chosen.long().tolist() == [[0, 0, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]]
    assert weight[1, 0].item() == pytest.approx(1 + 0.2 * 0.46212, abs=1e-5)
    none, _ = routers(1, hidden, torch.zeros_like(visual))
    assert not none.any()
    with pytest.raises(ConfigError, match=r"a layer with a router: 1\. Got 0"):
        routers(0, hidden, visual)


def test_mixing_by_hand() -> None:
    before, after = torch.tensor([[[2.0], [2.0], [2.0]]]), torch.tensor([[[4.0], [4.0], [0.0]]])
    weight = torch.tensor([[0.5, 0.5, 0.5]])
    through, visual = torch.tensor([[True, True, False]]), torch.tensor([[False, True, True]])
    found = mixed(before, after, weight, through, visual, symmetric=False)
    assert found.flatten().tolist() == [4.0, 3.0, 2.0]
    found = mixed(before, after, weight, through, visual, symmetric=True)
    assert found.flatten().tolist() == [4.0, 3.0, 1.0]


@pytest.mark.parametrize(("kind", "keep"), [("p-mod", 0.5), ("mod", 0.3)])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_a_batch_reads_what_a_slow_loop_reads(kind: str, keep: float, attention: str) -> None:
    loaded = deep(kind, keep)
    loaded.model.set_attn_implementation(attention)
    inputs = inputs_of(loaded)
    found = loaded.model(**inputs).logits
    for row, wanted in enumerate(slow(loaded.model, inputs)):
        real = inputs["attention_mask"][row].bool()
        assert_close(found[row][real], wanted, rtol=1e-4, atol=1e-4)
    plainly = base().model(**inputs).logits
    assert (plainly - found)[inputs["attention_mask"].bool()].abs().max() > 0.1


@torch.no_grad()
def test_what_skips_a_layer_is_as_it_was_bit_for_bit() -> None:
    loaded = deep("mod", 0.25)
    inputs, seen, lengths = inputs_of(loaded, "<image>What"), {}, []
    layers = loaded.model.model.language_model.layers
    layers[2].register_forward_pre_hook(lambda m, args: seen.update(after=args[0].clone()))
    layers[0].register_forward_hook(lambda m, args, out: seen.update(before=out.clone()))
    layers[1].mlp.register_forward_pre_hook(lambda m, args: lengths.append(args[0].shape[1]))
    loaded.model(**inputs)
    visual = (inputs["input_ids"] == loaded.model.config.image_token_id)[0]
    same = (seen["before"] == seen["after"]).all(-1)[0]
    assert same.tolist().count(True) == int(same[visual].sum()) == 12
    assert lengths == [len(visual) - 12]  # what skips costs nothing


@torch.no_grad()
def test_where_all_is_kept_it_is_the_model_itself() -> None:
    loaded, whole = deep("mod", 1.0), base()
    inputs = inputs_of(whole)
    assert torch.equal(loaded.model(**inputs).logits, whole.model(**inputs).logits)
    words = inputs_of(deep(), "<image>What")["input_ids"][:, -4:]
    assert torch.equal(deep().model(words).logits, whole.model(words).logits)  # no picture


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_decoding_behind_a_cache_is_reading_it_all(attention: str) -> None:
    loaded = deep()
    loaded.model.set_attn_implementation(attention)
    inputs = inputs_of(loaded)
    found = loaded.model.generate(**inputs, **GREEDY)
    assert torch.equal(found, loaded.model.generate(**inputs, **GREEDY, use_cache=False))
    for row in range(2):
        real = inputs["attention_mask"][row].bool()
        alone = {"input_ids": inputs["input_ids"][row][real][None],
                 "pixel_values": inputs["pixel_values"][row : row + 1]}  # fmt: skip
        assert torch.equal(loaded.model.generate(**alone, **GREEDY)[0, -5:], found[row, -5:])
    looked = loaded.model.generate(**alone, **GREEDY, prompt_lookup_num_tokens=2)
    assert torch.equal(looked[0, -5:], found[1, -5:])
    beams = loaded.model.generate(**inputs, **GREEDY, num_beams=2)
    again = loaded.model.generate(**inputs, **GREEDY, num_beams=2, use_cache=False)
    assert torch.equal(beams, again)


@torch.no_grad()
def test_caches_hold_what_went_through_and_text_goes_on_behind_them() -> None:
    loaded = deep("mod", 0.25)
    inputs = inputs_of(loaded, "<image>What is it")
    cache = loaded.model(**inputs, use_cache=True).past_key_values
    S = inputs["input_ids"].shape[1]
    assert [layer.get_seq_length() for layer in cache.layers] == [S, S - 12, S, S - 12]
    more = inputs["input_ids"][:, -3:]
    found = loaded.model(input_ids=more, past_key_values=cache).logits
    ids = torch.cat([inputs["input_ids"], more], 1)
    whole = loaded.model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits
    assert_close(found, whole[:, -3:], rtol=1e-4, atol=1e-4)


def test_what_cannot_skip_says_so() -> None:
    loaded = deep()
    model, inputs = loaded.model, inputs_of(loaded, "<image>What is it")
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    with pytest.raises(UnsupportedError, match="Expected `input_ids`"):
        model(inputs_embeds=embeds)
    with pytest.raises(UnsupportedError, match="DynamicCache"):
        model.generate(**inputs, **GREEDY, cache_implementation="static")
    cache = model(**inputs, use_cache=True).past_key_values
    cache.layers[1].crop(-1)
    with pytest.raises(UnsupportedError, match="a cache cropped no further"):
        model(input_ids=inputs["input_ids"][:, -1:], past_key_values=cache)
    cache = model(**inputs, use_cache=True).past_key_values
    cache.crop(-20)
    with pytest.raises(UnsupportedError, match="a cache cropped no further"):
        model(input_ids=inputs["input_ids"][:, -1:], past_key_values=cache)
    cache = model(**inputs, use_cache=True).past_key_values
    with pytest.raises(UnsupportedError, match="behind a filled cache"):
        model(**inputs_of(loaded, "<image>What"), past_key_values=cache)
    with (
        sieve(model, "random", 0.5, layer=1),
        pytest.raises(UnsupportedError, match="method that acts before the LLM"),
    ):
        model.generate(**inputs, **GREEDY)
    with pytest.raises(UnsupportedError, match="attention_mask"):
        model(**{**inputs, "attention_mask": torch.ones(1, 1, 3, 3)})
    model.train().gradient_checkpointing_enable()
    with pytest.raises(UnsupportedError, match="gradient checkpointing"):
        model(**inputs)
    with pytest.raises(ConfigError, match="layers read all tokens"):
        deepen(model, loaded.processor)
    with pytest.raises(ConfigError, match="Did you mean 'p-mod'"):
        deepen(base().model, loaded.processor, "pmod")


@torch.no_grad()
def test_a_sieve_before_the_llm_may_be_put_on() -> None:
    loaded = deep()
    inputs = inputs_of(loaded)
    with sieve(loaded.model, "stride", 0.5) as report:
        loaded.model.generate(**inputs, **GREEDY)
    assert (report.visual_tokens, report.kept_tokens) == (32, 16)
    with sieve(loaded.model, "stride", 1.0):
        found = loaded.model.generate(**inputs, **GREEDY)
    assert torch.equal(found, loaded.model.generate(**inputs, **GREEDY))


@pytest.mark.parametrize("kind", ["p-mod", "mod"])
@torch.no_grad()
def test_it_is_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    loaded = deep(kind)
    loaded.model.save_pretrained(tmp_path)
    loaded.processor.save_pretrained(tmp_path)
    again = load_model(str(tmp_path))
    inputs = inputs_of(loaded)
    assert torch.equal(again.model(**inputs).logits, loaded.model(**inputs).logits)
    file = tmp_path / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "routers" not in k}, file,
              metadata={"format": "pt"})  # fmt: skip
    with pytest.raises(WeightsError, match=r"routers that config\.json says"):
        FusedLlavaForConditionalGeneration.from_pretrained(tmp_path)


def test_parts_are_shared_and_the_own_projector_stays() -> None:
    whole = base()
    made = deepen(whole.model, whole.processor)
    assert made.model.model.language_model is whole.model.model.language_model
    mlp = made.model.model.multi_modal_projector.spatial.mlp
    assert mlp[0] is whole.model.model.multi_modal_projector.linear_1
    fused = fuse(whole.model, whole.processor, blocks=2)
    deeper = deepen(fused.model, fused.processor, "mod", 0.2)
    assert deeper.model.model.multi_modal_projector is fused.model.model.multi_modal_projector
    assert fused.model.config.depths is None
    whole.model.config.projector_hidden_act = "relu"
    with pytest.raises(UnsupportedError, match="two linear layers"):
        deepen(whole.model, whole.processor)


@pytest.mark.parametrize("preset", ["stage1", "stage2", "stage2-lora"])
def test_routers_learn_with_whatever_learns(preset: str, tmp_path: Path) -> None:
    rows = rows_of(8, 0)
    for row in rows if preset == "stage1" else []:
        row["conversations"] = row["conversations"][:2]
    data = Data(*write_rows(tmp_path, rows))
    recipe = toy_recipe(preset, "train.checkpointing=false", "train.steps=2", "run.log_every=2")
    made = base()
    made = fuse(made.model, made.processor, blocks=2)
    made = deepen(made.model, made.processor, "mod", 0.5)
    before = deepcopy(made.model.state_dict())
    out = train_fusion(made, data, recipe, tmp_path / "o")
    after = load_model(str(out)).model.state_dict()
    assert after.keys() == before.keys()
    name = "model.routers.layers.1.weight"
    assert not torch.equal(before[name], after[name])
    assert json.loads((out / "config.json").read_text())["depths_keep"] == 0.5


def test_a_training_says_what_it_needs(tmp_path: Path) -> None:
    data = Data(*write_rows(tmp_path, rows_of(8, 0)))
    whole = base()
    whole.model.save_pretrained(tmp_path / "m")
    whole.processor.save_pretrained(tmp_path / "m")
    made = load_base(str(tmp_path / "m"), {"kind": "own"}, depths=("p-mod", 0.5))
    assert made.name.endswith("+p-mod-0.5")
    with pytest.raises(ConfigError, match="checkpointing=false for a model whose tokens skip"):
        train_fusion(made, data, toy_recipe("stage2", "train.checkpointing=true"), tmp_path / "o")
