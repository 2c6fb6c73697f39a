"""Methods inside the encoder."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from families import decoders, fewer, steps
from families.checks import answer
from families.inside import hooks_on
from families.registry import crops_of, kept_of, rows_of
from families.steps import Norm
from families.tiny import IMAGE, Tiny, build
from tokensieve.errors import BudgetError, ConfigError, NonFiniteError, UnsupportedError
from tokensieve.functional.blocks import even_blocks
from tokensieve.hf.attention.tap import tapped
from tokensieve.hf.encoder import left as left_module
from tokensieve.hf.encoder.encode import encode
from tokensieve.hf.encoder.rows import PackedRows
from tokensieve.hf.encoder.run import ShortRun
from tokensieve.hf.families.fingerprint import encoder_info
from tokensieve.hf.families.towers import attention_in, encoder_layers, has_cls
from tokensieve.hf.models.random import RANDOM_MODELS
from tokensieve.hf.sieve import compress, sieve
from tokensieve.methods.base import Method
from tokensieve.methods.registry import get_method, method_class, method_names
from tokensieve.nn.thresholds import Thresholds
from tokensieve.types import Kind, Signal, Site

FAMILIES = ("llava", "llava_next", "llava_onevision", "internvl")
SIGLIP = {"paligemma": build, "gemma3": build}  # the encoder's last layer, 1 or 4 patches a token
SIGLIP |= dict.fromkeys(("aya_vision", "cohere2_vision"), decoders.build)
METHODS = [name for name in method_names() if method_class(name).site is Site.ENCODER]
every_family = pytest.mark.parametrize("family", FAMILIES)
every_tower = pytest.mark.parametrize("name", fewer.FAMILIES)
every_method = pytest.mark.parametrize("method", METHODS)
# A batch of another size is summed in another order, and weights this large blow that up.
NEARLY = {"rtol": 1e-4, "atol": 1e-4}


def ready(name: str, model: object) -> Method:
    if name != "dymu":
        return get_method(name)
    info = encoder_info(model)
    half = tuple(0.5 for _ in range(info.block + 1))
    return get_method(name, thresholds=Thresholds(info, (0.4,), (half,)))


@dataclass(frozen=True)
class Ragged(Norm):
    """Another number of tokens for every crop."""

    exact = False

    def reduce(self, vision, counts, text=None):
        fewer = counts - 4 * (torch.tensor(vision.keys, device=counts.device) % 3)
        return super().reduce(vision, fewer.clamp(min=1), text)


@dataclass(frozen=True)
class Poisoned(Norm):
    """Goes wrong behind the second layer."""

    asked: tuple = ()

    def signals(self, encoder):
        return {"keys": Signal(Kind.KEYS)}

    def at_block(self, block, share):
        if block:
            raise RuntimeError("poisoned")
        return self


@dataclass(frozen=True)
class Growing(Norm):
    """Wants more tokens at a later layer."""

    def block_counts(self, length, keep, blocks):
        return [keep, *[length] * (blocks - 2), keep] if blocks > 2 else [length + 1, keep]


@dataclass(frozen=True)
class Peek(Norm):
    """Remembers what it was shown."""

    seen: list = dataclasses.field(default_factory=list)

    def signals(self, encoder):
        asked = (Kind.KEYS, Kind.CLS_ATTENTION, Kind.RECEIVED_ATTENTION, Kind.HEAD_MAPS)
        return {kind.value: Signal(kind) for kind in asked}

    def reduce(self, vision, counts, text=None):
        self.seen.append(vision)
        return super().reduce(vision, counts, text)


@every_family
@every_method
@pytest.mark.parametrize("keep", [0.4, 0.75])
@pytest.mark.one_of_each
def test_budgets_are_exact_and_the_model_answers(family, method, keep):
    tiny = build(family)
    instance, inputs = ready(method, tiny.model), tiny.inputs([1, 2])
    before = {name: value.clone() for name, value in inputs.items()}
    short = compress(tiny.model, inputs, instance, keep)
    for crops in crops_of(short):
        for crop in crops:
            asked = int(keep * int(crop.valid.sum()) + 0.5)
            assert len(crop.kept) == asked or not instance.exact
            assert math.ceil(asked / 2) <= len(crop.kept) <= 2 * asked
    assert all(torch.equal(inputs[name], value) for name, value in before.items())
    tokens = answer(tiny.model, short.inputs)[0]
    assert tokens.shape == (2, 5)
    with sieve(tiny.model, instance, keep):
        assert torch.equal(answer(tiny.model, inputs)[0][:, -5:], tokens[:, -5:])


@every_family
@every_method
@pytest.mark.one_of_each
def test_alone_as_in_a_batch(family, method):
    tiny = build(family)
    instance = ready(method, tiny.model)
    both = compress(tiny.model, tiny.inputs([1, 2]), instance, 0.4)
    alone = compress(tiny.model, tiny.inputs([1]), instance, 0.4)
    first = kept_of(alone)
    assert kept_of(both)[: len(first)] == first
    assert_close(rows_of(both)[: len(rows_of(alone))], rows_of(alone), **NEARLY)


@every_family
def test_different_numbers_in_a_batch(family):
    """Padding is not attended to, or a crop would be another one beside longer ones."""
    tiny = build(family)
    both = compress(tiny.model, tiny.inputs([2, 1]), Ragged(), 0.5)
    assert len({len(kept) for kept in kept_of(both)}) > 1
    alone = compress(tiny.model, tiny.inputs([2]), Ragged(), 0.5)
    assert kept_of(both)[: len(kept_of(alone))] == kept_of(alone)
    assert_close(rows_of(both)[: len(rows_of(alone))], rows_of(alone), **NEARLY)


@every_family
@every_method
@pytest.mark.one_of_each
def test_keep_one_runs_nothing(family, method, monkeypatch):
    tiny = build(family)
    instance, inputs = ready(method, tiny.model), tiny.inputs([1, 2])
    whole = compress(tiny.model, inputs, get_method("full"), 1.0)
    monkeypatch.setattr(type(instance), "reduce", None)
    same = compress(tiny.model, inputs, instance, 1.0)
    assert_close(rows_of(same), rows_of(whole), rtol=0, atol=0)
    nearly = compress(tiny.model, inputs, instance, 0.999)  # rounds to all of them
    assert_close(rows_of(nearly), rows_of(whole), rtol=0, atol=0)


@pytest.mark.parametrize("family", SIGLIP)
def test_towers_of_other_families(family):
    """Budgets, a batch as alone, keep=1 the identity, and an answer."""
    tiny = SIGLIP[family](family)
    for method in (get_method("tome"), Ragged()):
        both = compress(tiny.model, tiny.inputs([1, 2]), method, 0.5)
        alone = compress(tiny.model, tiny.inputs([1]), method, 0.5)
        assert kept_of(both)[:1] == kept_of(alone)
        assert len(kept_of(alone)[0]) == 8 or not method.exact
        assert_close(rows_of(both)[: len(rows_of(alone))], rows_of(alone), **NEARLY)
    inputs = tiny.inputs([1])
    whole = answer(tiny.model, inputs)
    with sieve(tiny.model, "tome", 1.0):
        assert torch.equal(answer(tiny.model, inputs)[1], whole[1])
    with sieve(tiny.model, "tome", 0.5) as report:
        assert answer(tiny.model, inputs)[0].shape == whole[0].shape
    assert report.kept_tokens == 8


def traces(model) -> list:
    """What a sieve might leave behind."""
    tower = model.base_model.vision_tower
    return [
        (name, list(m._forward_pre_hooks.values()), list(m._forward_hooks.values()),
         id(getattr(m, "config", None)), sorted(vars(m)))
        for name, m in tower.named_modules()
    ]  # fmt: skip


@every_family
@pytest.mark.parametrize("method", ["tome", "poisoned"])
@pytest.mark.one_of_each
def test_everything_is_restored(family, method):
    tiny = build(family)
    inputs = tiny.inputs([1])
    whole = rows_of(compress(tiny.model, inputs, get_method("full"), 1.0))
    before = traces(tiny.model)
    if method == "poisoned":
        with pytest.raises(RuntimeError, match="poisoned"):
            compress(tiny.model, inputs, Poisoned(), 0.4)
    else:
        compress(tiny.model, inputs, "tome", 0.4)
    assert traces(tiny.model) == before
    again = rows_of(compress(tiny.model, inputs, get_method("full"), 1.0))
    assert_close(again, whole, rtol=0, atol=0)


@every_family
def test_attention_may_be_eager(family):
    for method in METHODS:
        rows = []
        for attention in ("eager", "sdpa"):
            tiny = build(family, attention)
            instance = ready(method, tiny.model)
            rows.append(rows_of(compress(tiny.model, tiny.inputs([1, 1]), instance, 0.4)))
        # What expediting builds anew is weighed by a sharp softmax: rounding counts seven times.
        close = {"rtol": 5e-4, "atol": 5e-4} if method == "expediting" else NEARLY
        assert_close(*rows, **close)


# A slow forward of the tower over one crop, with ToMe in it, by loops over tokens.


def attend(layer, h, sizes, cls, proportional):
    """Hidden states behind a layer, and its keys (mean over heads, CLS left out)."""
    clip = hasattr(layer, "self_attn")
    module = layer.self_attn if clip else layer.attention
    x = layer.layer_norm1(h) if clip else layer.layernorm_before(h)
    S, H = len(h), module.num_heads
    q, k, v = (p(x) for p in (module.q_proj, module.k_proj, module.v_proj))
    if not clip:
        q, k = module.q_norm(q), module.k_norm(k)
    q, k, v = (part.view(S, H, -1) for part in (q, k, v))
    mixed = torch.zeros_like(v)
    for head in range(H):
        logits = q[:, head] @ k[:, head].T * module.scale
        if proportional:
            logits = logits + torch.cat([torch.ones(cls), sizes]).log()
        mixed[:, head] = logits.softmax(-1) @ v[:, head]
    out = module.out_proj if clip else module.projection_layer
    y = out(mixed.reshape(S, -1))
    if clip:
        h = h + y
        return h + layer.mlp(layer.layer_norm2(h)), k[cls:].mean(1)
    h = h + layer.lambda_1 * y
    return h + layer.lambda_2 * layer.mlp(layer.layernorm_after(h)), k[cls:].mean(1)


def manual_tome(tiny: Tiny, pixels, keep: int, proportional=True):
    """(places, groups of patches, rows before the projector) of one crop."""
    tower, info = tiny.model.base_model.vision_tower, encoder_info(tiny.model)
    h = tower.embeddings(pixels[None])[0]
    if hasattr(tower, "pre_layrnorm"):
        h = tower.pre_layrnorm(h)
    cls = 0 if info.model_type == "siglip_vision_model" else 1
    layers = getattr(tower.encoder, "layers", None) or tower.encoder.layer
    groups = [[i] for i in range(len(h) - cls)]
    for block, n in enumerate(even_blocks(len(groups), keep, info.block + 1)):
        sizes = torch.tensor([float(len(group)) for group in groups])
        h, keys = attend(layers[block], h, sizes, cls, proportional)
        tokens = list(h[cls:])
        pairs = []
        for a in range(cls, len(tokens), 2):  # a CLS token is dealt first
            near = [(torch.cosine_similarity(keys[a], keys[b], 0).item(), -b)
                    for b in range(1 - cls, len(tokens), 2)]  # fmt: skip
            pairs.append((*max(near), -a))
        gone = set()
        for _, b, a in sorted(pairs, reverse=True)[: len(tokens) - n]:
            a, b = -a, -b
            weights = len(groups[a]), len(groups[b])
            tokens[b] = (tokens[a] * weights[0] + tokens[b] * weights[1]) / sum(weights)
            groups[b] = [*groups[b], *groups[a]]
            gone.add(a)
        stay = [i for i in range(len(tokens)) if i not in gone]
        groups = [groups[i] for i in stay]
        h = torch.cat([h[:cls], torch.stack([tokens[i] for i in stay])])
    return [group[0] for group in groups], groups, h[cls:]


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "llava_onevision"])
def test_tome_equals_a_slow_forward_of_the_tower(family):
    tiny = build(family)
    inputs = tiny.inputs([1])
    short = compress(tiny.model, inputs, "tome", 0.4, newlines="drop")
    pixels = inputs["pixel_values"].flatten(0, -4)[0]
    places, groups, rows = manual_tome(tiny, pixels, 6)
    assert kept_of(short)[0] == places
    assert max(map(len, groups)) > 2
    project = tiny.model.base_model.multi_modal_projector
    assert_close(rows_of(short)[:6], project(rows), rtol=1e-4, atol=1e-4)
    plain = compress(tiny.model, inputs, "tome", 0.4, newlines="drop", proportional=False)
    _, _, flat = manual_tome(tiny, pixels, 6, proportional=False)
    assert_close(rows_of(plain)[:6], project(flat), rtol=1e-4, atol=1e-4)
    assert (project(flat) - project(rows)).abs().max() > 1e-3  # or the weights go unnoticed


@torch.no_grad()
def test_tome_in_internvit_fills_groups_of_patches():
    """The groups with most survivors stay; a merged patch has the row of what took it in."""
    tiny = build("internvl")
    inputs = tiny.inputs([1])
    short = compress(tiny.model, inputs, "tome", 0.4)
    base, tower = tiny.model.base_model, tiny.model.base_model.vision_tower
    places, groups, rows = manual_tome(tiny, inputs["pixel_values"][0], 24)
    full = torch.zeros(64, rows.shape[-1])
    for group, row in zip(groups, rows, strict=True):
        full[group] = row
    numbers = torch.arange(64.0).view(1, 8, 8, 1)
    of_token = base.pixel_shuffle(numbers, scale_factor=0.5).reshape(16, 4).long().tolist()
    held = [len(set(patches) & set(places)) for patches in of_token]
    kept = sorted(sorted(range(16), key=lambda g: (-held[g], g))[:6])
    assert kept_of(short)[0] == kept
    shuffled = base.pixel_shuffle(tower.layernorm(full).view(1, 8, 8, -1), scale_factor=0.5)
    want = base.multi_modal_projector(shuffled.reshape(16, -1))
    assert_close(rows_of(short), want[kept], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_rows_go_back_to_their_places(monkeypatch):
    """In another order the same rows would be other tokens."""
    tiny = build("llava")
    inputs = tiny.inputs([1])
    right = rows_of(compress(tiny.model, inputs, "tome", 0.4))
    spread = left_module.Left.spread
    wrong_way = lambda self, tokens, groups: spread(self, tokens.flip(1), groups)  # noqa: E731
    monkeypatch.setattr(left_module.Left, "spread", wrong_way)
    wrong = rows_of(compress(tiny.model, inputs, "tome", 0.4))
    assert (right - wrong).abs().max() > 1e-3
    assert_close(right, wrong.flip(0))


@torch.no_grad()
@pytest.mark.parametrize("family", [*FAMILIES, *SIGLIP])
def test_pruning_is_the_tower_in_which_the_dropped_are_not_attended_to(family):
    """Nothing else changes: the tower itself, with dropped patches masked from their layer on."""
    tiny = SIGLIP.get(family, build)(family)
    inputs = tiny.inputs([1])
    peek = Peek([])
    short = compress(tiny.model, inputs, peek, 0.5, newlines="drop")
    first, second = peek.seen[0], peek.seen[-1]
    assert second.tokens.shape[1] < first.tokens.shape[1]
    for name in (Kind.CLS_ATTENTION, Kind.RECEIVED_ATTENTION, Kind.HEAD_MAPS):
        assert bool((second.signals[name.value] >= 0).all())
        keys = 2 if name is Kind.HEAD_MAPS else -1
        assert bool((second.signals[name.value].sum(keys) <= 1 + 1e-5).all())
    tower = tiny.model.base_model.vision_tower
    layers = getattr(tower.encoder, "layers", None) or tower.encoder.layer
    cls = int(encoder_info(tiny.model).model_type != "siglip_vision_model")
    encoded = encode(tiny.model, inputs)
    valid = torch.cat([packing.valid_nL for packing in encoded.packings])
    merged = first.tokens.shape[1] // valid.shape[1]
    assert merged == 1 or bool(valid.all())
    valid = valid.repeat(1, merged)
    gone = torch.zeros(len(valid), valid.shape[1] + cls)
    handles, block_of = [], iter(range(len(layers)))

    def mask(_module, args, kwargs):
        if not bool(gone.any()):
            return None
        return args, {**kwargs, "attention_mask": gone[:, None, None] * -1e9}

    def drop(_module, _args, output):
        block = next(block_of)
        if block > encoder_info(tiny.model).block:
            return
        hidden = output[0] if isinstance(output, tuple) else output
        norm = hidden[:, cls:].norm(dim=-1)
        for b, n in enumerate(valid.sum(-1).tolist()):
            c = int(0.5 * (n // merged) + 0.5) * merged
            if not 0 < c < n:
                continue
            blocks = encoder_info(tiny.model).block + 1
            count = even_blocks(n, c, blocks, halve=False)[block]
            free = valid[b] & (gone[b, cls:] == 0)
            best = norm[b].masked_fill(~free, -1).topk(count).indices
            gone[b, cls:] = 1
            gone[b, cls + best] = 0

    for layer in layers:
        attention = getattr(layer, "self_attn", None) or layer.attention
        handles.append(attention.register_forward_pre_hook(mask, with_kwargs=True))
        handles.append(layer.register_forward_hook(drop))
    try:
        masked = encode(tiny.model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    if merged > 1:  # rows of tokens are blends of kept and filled patches
        alive = gone[:, cls:] == 0
        assert int(alive.sum()) == 4 * sum(map(len, kept_of(short)))
        return
    kept = {(b, place) for b, places in enumerate(kept_of(short)) for place in places}
    assert kept == {(b, int(p)) for b in range(len(gone)) for p in
                    (valid[b] & (gone[b, cls:] == 0)).nonzero()}  # fmt: skip
    (packing,) = masked.packings
    places = [divmod(int(o), packing.length) for o in packing.origin_N if o >= 0]
    rows = masked.images[0][packing.origin_N >= 0]
    want = torch.stack([row for row, place in zip(rows, places, strict=True) if place in kept])
    assert_close(rows_of(short), want, rtol=1e-4, atol=1e-4)


@cache
def random_model(name):
    torch.manual_seed(0)
    model, processor = RANDOM_MODELS[name]()
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return model.eval(), processor


@pytest.mark.parametrize("name", ["siglip", "internvit"])
@every_method
@pytest.mark.one_of_each
def test_towers_with_their_processors(name, method):
    model, processor = random_model(name)
    g = torch.Generator().manual_seed(4)
    noise = (torch.rand(192, 384, 3, generator=g) * 255).byte().numpy()
    token = processor.image_token
    text = [f"{token} {token}", f"{token}"]  # two pictures side by side
    pictures = [Image.fromarray(noise), Image.fromarray(noise[::-1].copy())]
    inputs = processor(
        images=[pictures, pictures[:1]], text=text, padding=True, return_tensors="pt"
    )
    short = compress(model, inputs, ready(method, model), 0.25)
    for crops in crops_of(short):
        for crop in crops:
            size = int(crop.valid.sum())
            assert size == 256 if name == "siglip" else size in (64, 256)
            assert len(crop.kept) == size // 4 or method == "dymu"
    assert short.inputs["input_ids"].shape[1] < inputs["input_ids"].shape[1]
    assert bool(torch.isfinite(model(**short.inputs).logits).all())


def test_pictures_side_by_side_are_crops_of_their_own():
    tiny = build("llava")
    inputs = tiny.inputs([2])
    ids = inputs["input_ids"][0]
    place = ids == IMAGE
    side = torch.cat([ids[:2], ids[place], ids[~place][2:]])[None]
    together = {**inputs, "input_ids": side}
    apart = compress(tiny.model, inputs, "tome", 0.4)
    assert kept_of(compress(tiny.model, together, "tome", 0.4)) == kept_of(apart)


def test_a_prompt_without_pictures_is_left_alone():
    tiny = build("llava")
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    assert torch.equal(compress(tiny.model, inputs, "tome", 0.4).inputs["input_ids"],
                       inputs["input_ids"])  # fmt: skip


def test_encoded_pictures_are_encoded_anew():
    tiny = build("llava")
    inputs = tiny.inputs([1, 2])
    direct = compress(tiny.model, inputs, "tome", 0.4)
    encoded = encode(tiny.model, inputs)
    for _ in range(2):
        again = compress(tiny.model, encoded, "tome", 0.4)
        assert_close(rows_of(again), rows_of(direct), rtol=0, atol=0)


def test_layers_behind_the_one_that_is_read_run_on_what_is_left():
    tiny = build("llava")
    inputs = tiny.inputs([1])
    tower, lengths = tiny.model.base_model.vision_tower, []
    handles = [
        layer.register_forward_hook(lambda _m, _args, out: lengths.append(out.shape[1]))
        for layer in tower.encoder.layers
    ]
    compress(tiny.model, inputs, "tome", 0.4)
    for handle in handles:
        handle.remove()
    assert lengths == [12, 17, 7]  # CLS and 11 patches, all put back to be read, 6 patches


@every_tower
def test_every_tower_is_as_if_it_could_not_look_at_what_went(name):
    steps.check_steps(fewer.build(name), llm=name not in fewer.HYBRID)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "mistral3", "pixtral_llava", "lfm2_vl", "llava"])
def test_merged_patches_are_looked_at_as_often_as_they_are_several(name):
    """In windows, in one row of pictures, in a padded batch."""
    steps.check_steps(fewer.build(name), llm=name not in fewer.HYBRID, weighs=True)


def all_in_one_window(self, bounds):
    return torch.tensor([0, int(self.kept_N.sum())], dtype=bounds.dtype)


def first_places(self, rows, dim):
    return rows.narrow(dim, 0, int(self.kept_N.sum()))


def no_weights(self, module, key):
    return None


def no_mask(self, module, args, kwargs):
    return args, {**kwargs, "attention_mask": None}


def from_the_start(self, module, key):
    if self.bias is None:
        return None
    return self.bias[self.left.real_BS][None, None, None, : key.shape[-2]]


@pytest.mark.parametrize(
    ("name", "where", "method", "wrong"),
    [
        ("qwen2_5_vl", PackedRows, "bounds", all_in_one_window),
        ("qwen3_vl", PackedRows, "cut", first_places),
        ("mistral3", PackedRows, "cut", first_places),
        ("qwen2_5_vl", ShortRun, "_weigh", no_weights),
        ("qwen2_5_vl", ShortRun, "_weigh", from_the_start),
        ("lfm2_vl", ShortRun, "_attend", no_mask),
    ],
)
def test_a_wrong_run_of_a_tower_is_found(name, where, method, wrong, monkeypatch):
    monkeypatch.setattr(where, method, wrong)
    weighs, llm = method == "_weigh", name not in fewer.HYBRID
    with pytest.raises((AssertionError, RuntimeError)):
        steps.check_steps(fewer.build(name), llm=llm, weighs=weighs)


def test_windows_count_the_places_of_the_whole_picture():
    """A patch receives from its window alone, as a share of its whole crop: each window's sum is
    what is left there of what is left of the crop. The last layer sees all."""
    tiny, peek = fewer.build("qwen2_5_vl"), Peek([])
    compress(tiny.model, tiny.inputs([1]), peek, 0.5)
    early, late = peek.seen[0], peek.seen[1]
    assert_close(early.signals["received-attention"].sum(-1), torch.ones(1))
    assert_close(late.signals["received-attention"].sum(-1), torch.ones(1))
    maps = early.signals["head-maps"][0].mean(-1)
    assert_close(maps.sum(-1), torch.ones(len(maps)))
    windows = (maps @ maps.mT > 0).float()  # who shares any key with whom
    assert sorted(set(windows.sum(-1).tolist())) == [16.0]
    assert_close(windows @ windows, windows * 16)
    assert bool((late.signals["head-maps"][0].mean(-1) > 0).all())


@every_tower
@pytest.mark.parametrize("method", ["tome", "zero-tprune"])
@pytest.mark.one_of_each
def test_every_tower_bears_steps(name, method):
    """Budgets, a batch as alone, keep=1 the identity, an answer; nothing stays on the model."""
    tiny = fewer.build(name)
    inputs, hooks = tiny.inputs([1, 2]), hooks_on(tiny.model)
    whole = rows_of(compress(tiny.model, inputs, get_method("full"), 1.0))
    positions = fewer.positions_of(tiny.model)
    both = compress(tiny.model, inputs, method, 0.5, **positions)
    alone = compress(tiny.model, tiny.inputs([1]), method, 0.5, **positions)
    assert kept_of(both)[: len(kept_of(alone))] == kept_of(alone)
    for crop in (crop for picture in crops_of(both) for crop in picture):
        assert len(crop.kept) == int(0.5 * int(crop.valid.sum()) + 0.5)
    assert_close(rows_of(both)[: len(rows_of(alone))], rows_of(alone), rtol=1e-3, atol=5e-4)
    assert answer(tiny.model, both.inputs)[0].shape == (2, 5)
    assert torch.equal(rows_of(compress(tiny.model, inputs, method, 1.0, **positions)), whole)
    assert hooks_on(tiny.model) == hooks


# What is refused, and how.


@pytest.mark.parametrize("keep", [0.4, 1.0])
def test_other_towers_are_named(keep):
    tiny = build("fused_llava")
    with pytest.raises(UnsupportedError, match="clip_vision_model, siglip_vision_model, internvl"):
        compress(tiny.model, tiny.inputs([1]), "tome", keep)


def test_one_budget_for_several_crops_is_refused():
    tiny = build("llava_next")
    with pytest.raises(UnsupportedError, match="Expected pool='crop' for 'tome'"):
        compress(tiny.model, tiny.inputs([1]), "tome", 0.4, pool="image")


def test_a_layer_of_the_llm_is_refused():
    tiny = build("llava")
    with pytest.raises(UnsupportedError, match="'tome' with `layer`, which acts inside the enc"):
        sieve(tiny.model, "tome", 0.4, layer=1).__enter__()


@pytest.mark.parametrize("method", ["tome", "mctf", "dymu"])
def test_fewer_than_halving_reaches_is_refused(method):
    tiny = build("llava")
    with pytest.raises(BudgetError, match=r"at least 4 of 16 tokens .* 2 layers\. Got 2"):
        compress(tiny.model, tiny.inputs([1]), ready(method, tiny.model), 2)


def test_a_schedule_that_grows_is_refused():
    tiny = build("llava")
    with pytest.raises(ConfigError, match="never grows from 16"):
        compress(tiny.model, tiny.inputs([1]), Growing(), 0.4)


def test_encoder_outputs_in_place_of_pixels_are_refused():
    tiny = build("llava")
    inputs = tiny.inputs([1])
    given = encode(tiny.model, inputs).output
    inputs = {"input_ids": inputs["input_ids"], "mm_encoder_outputs": {"image": given}}
    with pytest.raises(UnsupportedError, match="Expected `pixel_values`"):
        compress(tiny.model, inputs, "tome", 0.4)


@every_method
def test_nan_names_the_layer(method):
    tiny = build("llava")
    inputs = tiny.inputs([1])
    layer = tiny.model.base_model.vision_tower.encoder.layers[0]

    def poison(_module, _args, output):
        output = output.clone()
        output[0, 3, 0] = float("nan")
        return output

    chosen = ready(method, tiny.model)
    if method == "expediting":  # which looks once: behind the second layer, too
        chosen = replace(chosen, after=1.0)
    handle = layer.register_forward_hook(poison, prepend=True)
    try:
        with pytest.raises(NonFiniteError, match="layer 1 of the vision encoder"):
            # our hook behind the first layer comes before this one
            compress(tiny.model, inputs, chosen, 0.4)
    finally:
        handle.remove()


def test_a_mask_that_flash_attention_does_not_take_is_refused(monkeypatch):
    tiny = build("llava")
    monkeypatch.setattr("tokensieve.hf.encoder.rows.MASKED", ("eager",))
    with pytest.raises(UnsupportedError, match="attn_implementation='sdpa', or use proportional"):
        compress(tiny.model, tiny.inputs([1]), "tome", 0.4)
    compress(tiny.model, tiny.inputs([1]), "tome", 0.4, proportional=False)


def test_gradient_checkpointing_is_refused():
    tiny = build("llava")
    tiny.model.train()
    tiny.model.gradient_checkpointing_enable()
    try:
        with pytest.raises(UnsupportedError, match=r"no gradient checkpointing, .* vision encoder"):
            compress(tiny.model, tiny.inputs([1]), "tome", 0.4)
    finally:
        tiny.model.gradient_checkpointing_disable()
        tiny.model.eval()


def test_rows_that_are_no_patches_are_refused():
    tiny = build("llava")
    inputs = tiny.inputs([1]) | {"vision_feature_select_strategy": "full"}
    ids = inputs["input_ids"]
    at = int((ids[0] == IMAGE).nonzero()[0])
    inputs["input_ids"] = torch.cat([ids[:, :at], ids[:, at : at + 1], ids[:, at:]], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with pytest.raises(UnsupportedError, match=r"Expected .* and not CLS, .* Got .*='full'"):
        compress(tiny.model, inputs, "tome", 0.4)


def test_a_reduction_says_what_went_where():
    tiny = build("llava")
    short = compress(tiny.model, tiny.inputs([1]), "tome", 0.4)
    (crop,) = crops_of(short)[0]
    _, groups, _ = manual_tome(tiny, tiny.inputs([1])["pixel_values"][0], 6)
    assign = crop.assign.tolist()
    assert [assign[p] for group in groups for p in group] == [g[0] for g in groups for _ in g]


@dataclass(frozen=True)
class Ahead(Peek):
    """Asks what the next layer would attend to."""

    def signals(self, encoder):
        asked = (Kind.KEYS, Kind.RECEIVED_ATTENTION)
        now = {kind.value: Signal(kind) for kind in asked}
        return now | {f"next {kind.value}": Signal(kind, ahead=True) for kind in asked}


@pytest.mark.parametrize("family", ["llava", "llava_onevision", "internvl"])
def test_a_look_ahead_is_the_next_layers_attention_if_nothing_were_dropped(family):
    """Before the first step by eager attention; the run itself is as without a look."""
    tiny, method, plain = build(family), Ahead(), Norm()
    inputs = tiny.inputs([1])
    layers = encoder_layers(tiny.model)
    found = {}

    def seen(module, query, key, scaling, mask):
        found[id(module)] = query, key, scaling

    modules = [attention_in(layer) for layer in layers]
    with tapped(modules, seen):
        encode(tiny.model, inputs)
    short = compress(tiny.model, inputs, method, 0.75)
    first, last = method.seen[0], method.seen[-1]
    cls = int(has_cls(tiny.model))
    for name, block in (("", 0), ("next ", 1)):
        query, key, scaling = found[id(modules[block])]
        rows = (query @ key.mT * scaling).softmax(-1).mean((1, 2))[:, cls:]
        keys = key.mean(1)[:, cls:]
        assert_close(first.signals[f"{name}received-attention"], rows[: len(first.tokens)])
        assert_close(first.signals[f"{name}keys"], keys[: len(first.tokens)])
    if len(layers) == len(method.seen):  # behind the last there is none to look at
        assert torch.equal(last.signals["next keys"], last.signals["keys"])
    unseen = compress(tiny.model, inputs, plain, 0.75)
    assert_close(rows_of(short), rows_of(unseen))


def test_a_look_ahead_is_through_the_windows_of_the_next_layer():
    """Layer 0 of this tower attends in windows, layer 1 to the whole picture."""
    tiny, method, found = fewer.build("qwen2_5_vl"), Ahead(), []
    inputs, module = tiny.inputs([1]), attention_in(encoder_layers(tiny.model)[1])
    with tapped([module], lambda _module, *told: found.append(told)):
        encode(tiny.model, inputs)
    ((query, key, scaling, _),) = found
    short = compress(tiny.model, inputs, method, 0.75)
    rows = (query @ key.mT * scaling).softmax(-1).mean((1, 2))
    assert_close(method.seen[0].signals["next received-attention"], rows)
    assert_close(method.seen[0].signals["next keys"], key.mean(1))
    assert_close(rows_of(short), rows_of(compress(tiny.model, inputs, Norm(), 0.75)))
