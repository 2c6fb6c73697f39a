"""What a cut inside the LLM is told of the layer before it: the same as eager attention says."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch.testing import assert_close

from families import inside
from families.inside import blocked, cut, kept_positions
from families.methods import ByNorm
from families.tiny import REQUIRED, build, question_of
from tokensieve.errors import NonFiniteError, UnsupportedError
from tokensieve.hf.families.table import decoder_of
from tokensieve.hf.llm import heard
from tokensieve.hf.llm.inside import Listening
from tokensieve.hf.sieve import encode, sieve
from tokensieve.methods.base import Method
from tokensieve.methods.registry import get_method
from tokensieve.types import Kind, Signal, Site

required = pytest.mark.parametrize("name", REQUIRED)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
STAGES = {1: 0.6, 2: 0.3}


@dataclass(frozen=True)
class Told(ByNorm):
    """Chooses by norm, and remembers the signals of one kind."""

    site = Site.LLM
    kind: Kind = Kind.LAST_ATTENTION
    seen: list = None
    ahead: bool = False
    reduce_pool = Method.reduce_pool  # all pictures of a prompt as one

    def signals(self, encoder):
        return {"it": Signal(self.kind, ahead=self.ahead)}

    def reduce(self, vision, counts, text=None):
        self.seen.append(vision)
        return super().reduce(vision, counts, text)


def forward(model, inputs):
    with torch.no_grad():
        return model(**inputs)


def told(tiny, inputs, kind, layer, ahead=False):
    """Signals by row of the prompt, (rows, ...) per prompt and stage; and the call's report."""
    method = Told(kind=kind, seen=[], ahead=ahead)
    _, call = cut(tiny.model, inputs, method, layer, forward, pool="prompt")
    encoded = encode(tiny.model, inputs)
    return method.seen, call, encoded


def stages_of(layer):
    return sorted(layer) if isinstance(layer, dict) else [layer]


def by_prompt(seen, encoded, stages):
    """The visions of each stage by prompt: a pooled budget shows one prompt at a time."""
    prompts = sorted(set(encoded.prompt_of))
    assert len(seen) == len(prompts) * len(stages)
    return {
        (at, p): seen[i * len(prompts) + j]
        for i, at in enumerate(stages)
        for j, p in enumerate(prompts)
    }


def rows_of_prompt(vision, encoded, prompt):
    """The signal's values in the order of the prompt's rows, and which rows are tokens."""
    values, start, rows, token = vision.signals["it"][0], 0, [], []
    for packing, owner in zip(encoded.packings, encoded.prompt_of, strict=True):
        if owner != prompt:
            continue
        size = packing.crops * packing.length
        part = values[start : start + size]
        rows.append(part[packing.origin_N.clamp(min=0)])
        token.append(packing.origin_N >= 0)
        start += size
    return torch.cat(rows), torch.cat(token)


def check(name, kind, layer, wanted, ahead=False):
    """wanted(at, inputs, call) -> (B, S, ...) by position of the whole prompt.

    ahead: of the layer at the cut, before anything is dropped there.
    """
    tiny = build(name)
    inputs = tiny.inputs([1, 2])
    seen, call, encoded = told(tiny, inputs, kind, layer, ahead)
    stages = stages_of(layer)
    found = by_prompt(seen, encoded, stages)
    place = inputs["input_ids"] == tiny.model.config.image_token_id
    for i, at in enumerate(stages):
        alive = inputs["attention_mask"].bool()
        if i:
            alive = kept_positions(tiny.model, inputs, call.stages[i - 1])
        before = replace(call, stages=tuple(s for s in call.stages if s.layer < at))
        want = wanted(tiny, at + ahead, inputs, before, alive)
        for p in range(len(place)):
            got, token = rows_of_prompt(found[at, p], encoded, p)
            left = token & alive[p][place[p]]
            full = want[p][place[p]]
            full = full[..., : got.shape[-1]] if got.ndim > 1 else full
            assert_close(got[left], full[left], **CLOSE)
            assert float(got[~left & token].abs().sum()) == 0.0


def eager(tiny, at, inputs, call):
    """(B, H, S, S) the attention of layer at - 1, nothing shorter, dropped keys out of sight."""
    model = build(tiny.name, "eager").model
    stages = [stage for stage in call.stages if stage.layer < at]
    with blocked(model, inputs, stages), torch.no_grad():
        return model(**inputs, output_attentions=True).attentions[at - 1]


def last_attention(tiny, at, inputs, call, alive):
    return eager(tiny, at, inputs, call).mean(1)[:, -1]  # padded on the left


def text_attention(tiny, at, inputs, call, alive):
    rows = eager(tiny, at, inputs, call).mean(1)
    text = question_of(tiny.name, inputs)
    longest = int(text.sum(-1).max())
    out = torch.zeros(*text.shape, longest)
    for b in range(len(out)):
        out[b, :, : int(text[b].sum())] = rows[b][text[b]].T
    return out


def projected(tiny, at, inputs, call):
    """Queries and keys of layer at - 1 before rotary positions: (B, S, H, d), (B, S, G, d)."""
    model, got = tiny.model, {}
    attention = inside.layers_of(model)[at - 1].self_attn
    hooks = [
        getattr(attention, side).register_forward_hook(
            lambda _m, _a, out, side=side: got.__setitem__(side, out)
        )
        for side in ("q_proj", "k_proj")
    ]
    with blocked(model, inputs, [s for s in call.stages if s.layer < at]), torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    width = attention.head_dim
    none = torch.nn.Identity()
    return (
        getattr(attention, norm, none)(got[side].unflatten(-1, (-1, width)))
        for side, norm in (("q_proj", "q_norm"), ("k_proj", "k_norm"))
    )


def unrotated(query, key, alive, scaling=None):
    """(S,) softmax over the `alive` keys for one query (H, d), mean over heads, by a loop."""
    H, d = query.shape
    group = H // key.shape[1]
    out = torch.zeros(len(alive))
    for h in range(H):
        scale = d**-0.5 if scaling is None else scaling
        logits = torch.tensor([float(query[h] @ k[h // group]) * scale for k in key])
        weight = torch.where(alive, (logits - logits[alive].max()).exp(), 0.0)
        out += weight / weight.sum() / H
    return out


def last_unrotated(tiny, at, inputs, call, alive):
    q, k = projected(tiny, at, inputs, call)
    own = inside.layers_of(tiny.model)[at - 1].self_attn.scaling
    return torch.stack([unrotated(q[b, -1], k[b], alive[b], own) for b in range(len(q))])


def mean_unrotated(tiny, at, inputs, call, alive):
    q, k = projected(tiny, at, inputs, call)
    place = inputs["input_ids"] == tiny.model.config.image_token_id
    structural = torch.cat([p.origin_N < 0 for p in encode(tiny.model, inputs).packings])
    tokens = alive & place
    tokens &= ~torch.zeros_like(place).masked_scatter(place, structural)
    return torch.stack([unrotated(q[b][tokens[b]].mean(0), k[b], tokens[b]) for b in range(len(q))])


def keys(tiny, at, inputs, call, alive):
    with blocked(tiny.model, inputs, [s for s in call.stages if s.layer < at]), torch.no_grad():
        cache = tiny.model(**inputs, use_cache=True).past_key_values
    return cache.layers[at - 1].keys.mean(1)


def keys_unrotated(tiny, at, inputs, call, alive):
    return [*projected(tiny, at, inputs, call)][1].flatten(2)


def all_keys(tiny, at, inputs, call, alive):
    with blocked(tiny.model, inputs, [s for s in call.stages if s.layer < at]), torch.no_grad():
        cache = tiny.model(**inputs, use_cache=True).past_key_values
    return cache.layers[at - 1].keys.transpose(1, 2).flatten(2)


def text_priority(tiny, at, inputs, call, alive):
    """By a loop: the half of the heads in which the words attend to visual tokens most."""
    rows = eager(tiny, at, inputs, call)
    text, place = question_of(tiny.name, inputs), inputs["input_ids"]
    place = place == tiny.model.config.image_token_id
    structural = torch.cat([p.origin_N < 0 for p in encode(tiny.model, inputs).packings])
    tokens = alive & place & ~torch.zeros_like(place).masked_scatter(place, structural)
    out = torch.zeros(*text.shape, int(text.sum(-1).max()))
    for b in range(len(out)):
        mass = [float(head[text[b]][:, tokens[b]].sum()) for head in rows[b]]
        best = sorted(range(len(mass)), key=lambda h: -mass[h])[: (len(mass) + 1) // 2]
        out[b, :, : int(text[b].sum())] = rows[b][best].mean(0)[text[b]].T
    return out


def received(tiny, at, inputs, call, alive):
    rows = eager(tiny, at, inputs, call).mean(1).masked_fill(~alive[..., None], 0)
    return rows.sum(1) / alive.sum(-1, keepdim=True)


def last_to_visual(tiny, at, inputs, call, alive):
    q, k = projected(tiny, at, inputs, call)
    place = inputs["input_ids"] == tiny.model.config.image_token_id
    structural = torch.cat([p.origin_N < 0 for p in encode(tiny.model, inputs).packings])
    tokens = alive & place & ~torch.zeros_like(place).masked_scatter(place, structural)
    return torch.stack([unrotated(q[b, -1], k[b], tokens[b]) for b in range(len(q))])


def text_key_norms(tiny, at, inputs, call, alive):
    norms = all_keys(tiny, at, inputs, call, alive).abs().sum(-1)
    text = question_of(tiny.name, inputs)
    out = torch.zeros(*text.shape, int(text.sum(-1).max()))
    for b in range(len(out)):
        out[b, :, : int(text[b].sum())] = norms[b][text[b]]
    return out


def saliency(tiny, at, inputs, call, alive):
    """The gradient by what enters layer `at` of a whole run, of a loss on what leaves it."""
    layer, seen = inside.layers_of(tiny.model)[at], {}

    def enters(_module, args, kwargs):
        hidden = (args[0] if args else kwargs["hidden_states"]).detach().requires_grad_()
        seen["in"] = hidden
        return ((hidden, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": hidden})

    def leaves(_module, _args, output):
        seen["out"] = output[0] if isinstance(output, tuple) else output

    hooks = [
        layer.register_forward_pre_hook(enters, with_kwargs=True),
        layer.register_forward_hook(leaves),
    ]
    with blocked(tiny.model, inputs, [s for s in call.stages if s.layer < at]):
        tiny.model(**inputs)
    for hook in hooks:
        hook.remove()
    norm = decoder_of(tiny.model).norm
    loss = 0.0
    for b, read in enumerate(alive):
        places = read.nonzero()[-5:-1, 0]  # four before the last
        logits = tiny.model.get_output_embeddings()(norm(seen["out"][b, places]))
        loss = loss - logits.log_softmax(-1).amax(-1).sum() / 4
    return torch.autograd.grad(loss, seen["in"])[0].norm(dim=-1)


def shared_neurons(tiny, at, inputs, call, alive):
    """Core neurons by sets and loops: the strongest 40 % of a token's active ones, the fifth of all
    that are so in most tokens; how many of those each token activates."""
    got = []
    mlp = inside.layers_of(tiny.model)[at - 1].mlp.down_proj
    hook = mlp.register_forward_pre_hook(lambda _m, args: got.append(args[0]))
    with blocked(tiny.model, inputs, [s for s in call.stages if s.layer < at]), torch.no_grad():
        tiny.model(**inputs)
    hook.remove()
    out = torch.zeros(alive.shape)
    for b, rows in enumerate(got[-1].tolist()):
        often = [0] * len(rows[0])
        for n, row in enumerate(rows):
            active = sorted((v for v in row if v > 0), reverse=True)
            strong = active[: math.ceil(0.4 * len(active))]
            if alive[b][n] and strong:
                often = [o + (v >= strong[-1]) for o, v in zip(often, row, strict=True)]
        least = max(sorted(often, reverse=True)[math.ceil(0.2 * len(often)) - 1], 1)
        core = {f for f, o in enumerate(often) if o >= least}
        for n, row in enumerate(rows):
            out[b, n] = sum(f in core for f, v in enumerate(row) if v > 0)
    return out


REFERENCES = {
    Kind.TEXT_KEY_NORMS: text_key_norms,
    Kind.SALIENCY: saliency,
    Kind.LAST_ATTENTION: last_attention,
    Kind.TEXT_ATTENTION: text_attention,
    Kind.LAST_UNROTATED: last_unrotated,
    Kind.MEAN_UNROTATED: mean_unrotated,
    Kind.KEYS: keys,
    Kind.KEYS_UNROTATED: keys_unrotated,
    Kind.ALL_KEYS: all_keys,
    Kind.RECEIVED_ATTENTION: received,
    Kind.TEXT_PRIORITY: text_priority,
    Kind.LAST_TO_VISUAL: last_to_visual,
    Kind.SHARED_NEURONS: shared_neurons,
}


@required
@pytest.mark.parametrize("layer", [2, STAGES], ids=str)
@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.one_of_each
def test_signals_are_those_of_eager_attention(name, kind, layer):
    check(name, kind, layer, REFERENCES[kind])


@required
@pytest.mark.parametrize("kind", [Kind.LAST_ATTENTION, Kind.ALL_KEYS, Kind.MEAN_UNROTATED])
@pytest.mark.one_of_each
def test_a_look_ahead_is_the_layer_at_the_cut(name, kind):
    """As it would attend if nothing were dropped there; nothing is cached or tapped by it."""
    check(name, kind, STAGES, REFERENCES[kind], ahead=True)

    def of_the_layer_before(tiny, at, *rest):
        return REFERENCES[kind](tiny, at - 1, *rest)

    with pytest.raises(AssertionError):
        check(name, kind, STAGES, of_the_layer_before, ahead=True)


@required
@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (Kind.LAST_UNROTATED, last_attention),
        (Kind.LAST_ATTENTION, last_unrotated),
        (Kind.KEYS_UNROTATED, lambda *a: keys(*a).repeat_interleave(2, -1)),
        (Kind.MEAN_UNROTATED, last_unrotated),
    ],
)
@pytest.mark.one_of_each
def test_the_comparison_tells_rotated_from_not(name, kind, wrong):
    with pytest.raises(AssertionError):
        check(name, kind, 2, wrong)


def forget_masks(patch):
    """Whom a layer's own mask lets each see is not heard."""
    seen = Listening._seen
    patch.setattr(Listening, "_seen", lambda *args: seen(*args[:-1], None))


def counts_padding(patch):
    forget_masks(patch)
    right = Listening.signals

    def wrong(self, at, held, repeats):
        everything = torch.ones_like(held.real_BN)
        return right(self, at, replace(held, real_BN=everything), repeats)

    patch.setattr(Listening, "signals", wrong)


def reads_the_future(patch):
    patch.setattr(
        heard, "_rows",
        lambda q, k, s, held, at, real: heard.attention_rows(
            q.gather(2, at[:, None, :, None].expand(*q.shape[:2], -1, q.shape[-1])), k, s.scaling,
            (held.real_BN[:, None] & real[..., None])[:, None],
        ).mT,
    )  # fmt: skip


@required
@pytest.mark.parametrize(
    ("broken", "kind"),
    [
        (counts_padding, Kind.LAST_ATTENTION),
        (counts_padding, Kind.LAST_UNROTATED),
        (reads_the_future, Kind.TEXT_ATTENTION),
    ],
)
@pytest.mark.one_of_each
def test_the_comparison_bites(name, broken, kind, monkeypatch):
    broken(monkeypatch)
    with pytest.raises(AssertionError):
        check(name, kind, 2, REFERENCES[kind])


def test_beams_are_told_what_one_row_is():
    tiny = build("llava")
    seen = []
    for beams in (1, 3):
        method = Told(kind=Kind.TEXT_ATTENTION, seen=[])
        with sieve(tiny.model, method, 0.5, layer=STAGES):
            tiny.model.generate(**tiny.inputs([1, 2]), max_new_tokens=2, num_beams=beams)
        seen.append([vision.signals["it"] for vision in method.seen])
    for one, three in zip(*seen, strict=True):
        assert_close(one, three)


def test_right_padding_ends_at_the_last_real_token():
    tiny = build("llava")
    left = tiny.inputs([1, 2])
    shift = (left["attention_mask"] == 0).sum(-1)
    right = dict(left)
    for key in ("input_ids", "attention_mask"):
        right[key] = torch.stack(
            [row.roll(-int(n)) for row, n in zip(left[key], shift, strict=True)]
        )
    signals = []
    for inputs in (left, right):
        method = Told(kind=Kind.LAST_UNROTATED, seen=[])
        cut(tiny.model, inputs, method, 1, forward)
        signals.append(torch.cat([vision.signals["it"] for vision in method.seen]))
    assert_close(*signals, **CLOSE)


def test_an_answer_that_is_scored_is_no_part_of_the_question():
    """Labels mark the answer; the choice is that of the prompt without it."""
    tiny = build("llava")
    inputs = tiny.inputs([1])
    answer = torch.tensor([[21, 22, 23]])
    long = {
        **inputs,
        "input_ids": torch.cat([inputs["input_ids"], answer], 1),
        "attention_mask": torch.ones(1, inputs["input_ids"].shape[1] + 3).long(),
    }
    labels = torch.cat([torch.full_like(inputs["input_ids"], -100), answer], 1)
    signals = []
    for given in (inputs, {**long, "labels": labels}, long):
        method = Told(kind=Kind.LAST_ATTENTION, seen=[])
        cut(tiny.model, given, method, 1, forward)
        signals.append(method.seen[0].signals["it"])
    assert_close(signals[0], signals[1], **CLOSE)
    assert float((signals[0] - signals[2]).abs().max()) > 1e-4


def test_only_the_layers_asked_for_are_tapped_and_only_in_the_prefill(monkeypatch):
    tiny = build("llava")
    configs = [layer.self_attn.config for layer in inside.layers_of(tiny.model)]
    counted = []
    right = Listening._seen
    monkeypatch.setattr(
        Listening, "_seen",
        lambda self, module, *rest: (counted.append(module.layer_idx), right(self, module, *rest)),
    )  # fmt: skip
    with sieve(tiny.model, get_method("fastv"), 0.5, layer=2):
        tiny.model.generate(**tiny.inputs([1, 2]), max_new_tokens=4)
    assert counted == [1]
    after = [layer.self_attn.config for layer in inside.layers_of(tiny.model)]
    assert all(a is b for a, b in zip(after, configs, strict=True))


@required
@pytest.mark.parametrize(("method", "layer"), [("fastv", 2), ("pact", 1)])
@pytest.mark.one_of_each
def test_everything_is_put_back_where_a_layer_gives_nan(name, method, layer):
    """One reads the layer before its cut, the other the layer at it."""
    tiny = build(name)
    attention = inside.layers_of(tiny.model)[1].self_attn
    config, hooks = attention.config, inside.hooks_on(tiny.model)
    weight = attention.k_proj.weight.data.clone()
    attention.k_proj.weight.data[0] = float("nan")
    try:
        with (
            pytest.raises(NonFiniteError, match="layer 1 of the LLM"),
            sieve(tiny.model, method, 0.5, layer=layer),
        ):
            tiny.model.generate(**tiny.inputs([1]), max_new_tokens=1)
    finally:
        attention.k_proj.weight.data.copy_(weight)
    assert attention.config is config
    assert inside.hooks_on(tiny.model) == hooks


@pytest.mark.parametrize(
    "signal", [Signal(Kind.CLS_ATTENTION), Signal(Kind.LAST_ATTENTION, 1)], ids=str
)
def test_signals_an_llm_does_not_give_are_refused(signal, monkeypatch):
    monkeypatch.setattr(Told, "signals", lambda self, encoder: {"it": signal})
    with (
        pytest.raises(UnsupportedError, match="signals of the LLM's layer just run"),
        sieve(build("llava").model, Told(seen=[]), 0.5, layer=1),
    ):
        pass


@required
def test_eager_models_hear_the_same(name):
    found = []
    for attention in ("sdpa", "eager"):
        method = Told(kind=Kind.LAST_ATTENTION, seen=[])
        tiny = build(name, attention)
        cut(tiny.model, tiny.inputs([1, 2]), method, 1, forward)
        found.append(torch.cat([v.signals["it"].flatten() for v in method.seen]))
    assert_close(*found, **CLOSE)
