"""What must hold of tokens dropped inside the LLM, against a model that was never cut: its layers
from the cut on just may not look at the dropped keys, by a mask written here."""

from __future__ import annotations

from contextlib import contextmanager

import torch

from families.checks import CLOSE, NEW, answer
from families.methods import Inside, InsideRagged
from families.said import require_same, require_tokens
from tokensieve.hf.families.table import decoder_of, places_of
from tokensieve.hf.sieve import encode, sieve


def layers_of(model):
    return decoder_of(model).layers


def windows_of(model):
    """Per layer how many places it looks back, itself among them; None: all."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return [window] * len(layers_of(model))
    return [window if kind == "sliding_attention" else None for kind in kinds]


def cut(model, inputs, method, layer, call=answer, **options):
    """What `call` returns inside a sieve, and the call's report."""
    with sieve(model, method, 0.5, layer=layer, **options) as report:
        out = call(model, inputs)
    return out, report.calls[-1]


def kept_positions(model, inputs, stage):
    """(B, S) what of the prompt a stage left, from its report."""
    encoded = encode(model, inputs)
    rows, numbers = [], {}
    for packing, prompt in zip(encoded.packings, encoded.prompt_of, strict=True):
        number = numbers[prompt] = numbers.get(prompt, -1) + 1
        crops = stage.prompts[prompt].images[number].crops
        kept = {c * packing.length + int(at) for c, crop in enumerate(crops) for at in crop.kept}
        rows += [(at in kept) if at >= 0 else bool(kept) for at in packing.origin_N.tolist()]
    place = places_of(model, inputs["input_ids"])
    left = inputs["attention_mask"].bool()
    return left.masked_scatter(place, torch.tensor(rows)) & left


@contextmanager
def blocked(model, inputs, stages, forgets=False, weights_BS=None):
    """Layers from each stage's on may not look at what it dropped; nothing is shorter. forgets:
    once the prompt is read, layers from the first stage's on look at what the last one left.
    weights: how often they look at each place of the prompt; None: once."""
    decoder = decoder_of(model)
    S = inputs["input_ids"].shape[1]
    windows = windows_of(model)
    handles = []
    for number, module in enumerate(layers_of(model)):
        past = [stage for stage in stages if stage.layer <= number]
        if not past:
            continue
        left_BS = kept_positions(model, inputs, max(past, key=lambda stage: stage.layer))
        at_last_BS = kept_positions(model, inputs, max(stages, key=lambda stage: stage.layer))

        def before(_module, args, kwargs, left_BS=left_BS, last_BS=at_last_BS, number=number):
            rows, Q = args[0].shape[:2]
            cache = kwargs["cache" if "cache" in kwargs else "past_key_values"]
            seen = 0 if cache is None else cache.get_seq_length(number)
            left_BS = last_BS if forgets and seen else left_BS
            left = left_BS.repeat_interleave(rows // len(left_BS), 0)
            left = torch.cat([left, left.new_ones(rows, seen + Q - S)], 1)
            at = torch.arange(seen, seen + Q)[:, None]
            places = torch.arange(seen + Q)
            own = kwargs["attention_mask"]
            if own is not None and not seen:  # the model's own: neither causal nor whole in all
                allowed = own[:, 0] if own.dtype == torch.bool else own[:, 0] == 0
            else:
                allowed = places <= at
                if (window := windows[number]) is not None:
                    allowed &= at - places < window
                    held = min(seen, window - 1) + Q  # what its cache still has
                    places, allowed, left = places[-held:], allowed[:, -held:], left[:, -held:]
            mask = left[:, None] & allowed
            mask = (mask | (places == at))[:, None]  # no row is empty
            if decoder.config._attn_implementation == "eager" or weights_BS is not None:
                mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
            if weights_BS is not None:
                log = weights_BS.log().repeat_interleave(rows // len(weights_BS), 0)
                log = torch.nn.functional.pad(log, (0, seen + Q - S))[:, places]
                mask = mask + log[:, None, None]
            return args, {**kwargs, "attention_mask": mask}

        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_blocked(tiny, layer, method=InsideRagged, pictures=(1, 2)):
    """Greedy tokens and their logits are those of the model that may not look."""
    inputs = tiny.inputs(list(pictures))
    (tokens, logits), call = cut(tiny.model, inputs, method(), layer)
    with blocked(tiny.model, inputs, call.stages):
        wanted_tokens, wanted = answer(tiny.model, inputs)
    claim = f"{tiny.name} cut at {layer} does not answer as if it could not look at what it dropped"
    require_same(logits, wanted, claim, **CLOSE)
    require_tokens(tokens, wanted_tokens, claim)
    assert 0 < call.kept_tokens < call.visual_tokens


def check_alone(tiny, layer):
    """A prompt padded in a batch, beside one that keeps another count, is answered as alone."""
    (_, together), _ = cut(tiny.model, tiny.inputs([1, 2]), InsideRagged(), layer)
    (_, alone), _ = cut(tiny.model, tiny.inputs([1]), InsideRagged(), layer)
    claim = f"{tiny.name} cut at {layer} does not answer a padded prompt as it does alone"
    require_same(together[:1], alone, claim, **CLOSE)


def check_cache(tiny, stages):
    """Each layer's cache holds the longest prompt left there and the new tokens but the last."""

    def caches(model, inputs):
        out = model.generate(
            **inputs, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True
        )
        return [layer.keys.shape[-2] for layer in out.past_key_values.layers]

    inputs = tiny.inputs([1, 2])
    lengths, call = cut(tiny.model, inputs, Inside(), stages, caches)
    for number, length in enumerate(lengths):
        past = [stage for stage in call.stages if stage.layer <= number]
        left = inputs["input_ids"].shape[1]
        if past:
            left = int(kept_positions(tiny.model, inputs, past[-1]).sum(-1).max())
            assert left < inputs["input_ids"].shape[1]
        claim = f"layer {number} of {tiny.name} cut at {stages} does not cache what is left there"
        assert length == left + NEW - 1, f"{claim}: {length} places. Expected {left + NEW - 1}."


def check_identity(tiny, layer):
    """Keeping all is the model itself, bit for bit."""
    inputs = tiny.inputs([1, 2])
    tokens, logits = answer(tiny.model, inputs)
    with torch.no_grad():
        whole = tiny.model(**inputs).logits
    with sieve(tiny.model, Inside(), 1.0, layer=layer) as report, torch.no_grad():
        same_tokens, same = answer(tiny.model, inputs)
        forward = tiny.model(**inputs).logits
    claim = f"keep=1 is not the identity inside the LLM of {tiny.name} at {layer}"
    require_same(same, logits, claim)
    require_same(forward, whole, claim)
    require_tokens(same_tokens, tokens, claim)
    assert report.kept_tokens == report.visual_tokens > 0


def hooks_on(model):
    """How many hooks there are on any module."""
    return sum(
        len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()
    )


def check_restored(tiny, method=Inside):
    """Nothing stays on the model, whether the method goes wrong or not."""
    model, inputs = tiny.model, tiny.inputs([1, 2])
    before, hooks, state = answer(model, inputs), hooks_on(model), set(model.__dict__)
    try:
        for call in (answer, lambda m, i: m(**i)):
            cut(model, inputs, method(), 1, call)
    except RuntimeError as error:
        assert "poisoned" in str(error)  # noqa: PT017
    claim = f"a sieve inside the LLM of {tiny.name} leaves something behind"
    assert hooks_on(model) == hooks, f"{claim}: {hooks_on(model) - hooks} hooks"
    assert set(model.__dict__) == state, f"{claim}: {sorted(set(model.__dict__) ^ state)}"
    for got, wanted in zip(answer(model, inputs), before, strict=True):
        require_same(got, wanted, claim)
