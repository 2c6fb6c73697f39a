"""What must hold of a shortened prompt, for every family. Each check takes the function that
shortens, so that a broken one can be shown to fail it."""

from __future__ import annotations

import torch

from families.methods import ByNorm, Ragged
from families.said import require_same, require_tokens
from tokensieve.hf.sieve import compress, encode, sieve

NEW = 5
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def answer(model, inputs, **options):
    """Greedy tokens and their logits: (B, T), (B, T, V)."""
    out = model.generate(
        **inputs, max_new_tokens=NEW, do_sample=False, output_logits=True,
        return_dict_in_generate=True, **options,
    )  # fmt: skip
    return out.sequences[:, -NEW:], torch.stack(out.logits, 1)


def kept_rows(full, shortened):
    """(R,) which rows of the full encoder output are in the shortened one, by their values."""
    rows = torch.cat([item.reshape(-1, item.shape[-1]) for item in full])
    left = torch.cat([item.reshape(-1, item.shape[-1]) for item in shortened])
    kept, at = torch.zeros(len(rows), dtype=torch.bool), 0
    for i, row in enumerate(rows):
        if at < len(left) and torch.equal(row, left[at]):
            kept[i], at = True, at + 1
    assert at == len(left), "rows came back in another order or with other values"
    return kept


def full_output(model, inputs):
    """The encoder's output over all pictures."""
    return encode(model, inputs).output.pooler_output


def blocked(model, inputs, short):
    """The whole prompt, its dropped keys blocked by holes in the mask, every position told."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    rows = kept_rows(full_output(model, inputs), short["mm_encoder_outputs"]["image"].pooler_output)
    assert 0 < int(rows.sum()) < len(rows)
    holes = mask.bool().masked_scatter(ids == model.config.image_token_id, rows).long()
    positions = model._prepare_position_ids_for_generation(ids, dict(inputs))
    return {**inputs, "attention_mask": holes, "position_ids": positions}


def check_blocked(tiny, shorten, pictures=(1, 2)):
    """Shortened = the whole prompt with the dropped keys blocked and every position as it was."""
    model, inputs = tiny.model, tiny.inputs(list(pictures))
    short = shorten(model, inputs)
    tokens, logits = answer(model, short)
    wanted_tokens, wanted = answer(model, blocked(model, inputs, short))
    claim = f"{tiny.name} does not answer as if the dropped tokens were blocked"
    require_same(logits, wanted, claim, **CLOSE)
    require_tokens(tokens, wanted_tokens, claim)


# layers with a state or a convolution, which a blocked token goes through all the same
STATEFUL = ("qwen3_5", "lfm2_vl", "minicpmv4_6")
RECOUNTED = ("exaone4_5",)  # `generate` counts what is left, whatever it is told


def check_before(tiny, shorten, pictures=(1, 2)):
    """What a family's shortened prompt is to be equal to, one way or the other.

    Blocked keys; or, where there is no such thing, a prompt put together by hand.
    """
    if tiny.name in RECOUNTED:
        check_embeds(tiny, lambda m, i: shorten(m, i, positions="renumber"), pictures[:1])
    elif tiny.name in STATEFUL:
        check_embeds(tiny, shorten, pictures[:1], told=True)
    else:
        check_blocked(tiny, shorten, pictures)


def check_alone(tiny, shorten):
    """A prompt padded in a batch, beside one that keeps another count, is answered as alone."""
    shorten = _positioned(tiny, shorten)
    _, together = answer(tiny.model, shorten(tiny.model, tiny.inputs([1, 2])))
    _, alone = answer(tiny.model, shorten(tiny.model, tiny.inputs([1])))
    claim = f"{tiny.name} does not answer a padded prompt as it does alone"
    require_same(together[:1], alone, claim, **CLOSE)


def _positioned(tiny, shorten):
    if tiny.name not in RECOUNTED:
        return shorten
    return lambda model, inputs: shorten(model, inputs, positions="renumber")


def check_cache(tiny, shorten):
    """Every layer's cache holds the shortened prompt and the new tokens but the last; layers that
    hold a state have no length."""
    shorten = _positioned(tiny, shorten)
    short = shorten(tiny.model, tiny.inputs([1, 2]))
    out = tiny.model.generate(
        **short, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True
    )
    length = short["input_ids"].shape[1] + NEW - 1
    lengths = [layer.keys.shape[-2] for layer in out.past_key_values.layers
               if hasattr(layer, "keys")]  # fmt: skip
    claim = f"{tiny.name} does not cache the shortened prompt alone"
    assert lengths == [length] * len(lengths), f"{claim}: {lengths} places. Expected {length}."
    whole = tiny.inputs([1, 2])["input_ids"].shape[1]
    assert short["input_ids"].shape[1] < whole, f"the prompt of {tiny.name} was not shortened"


def check_embeds(tiny, shorten, pictures=(1,), *, told=False):
    """Positions renumbered = embeddings of what is left, put together by hand.

    told: with positions as they were, which are told.
    """
    model, inputs = tiny.model, tiny.inputs(list(pictures))
    short = shorten(model, inputs)
    with torch.no_grad():
        logits = model(**short).logits
        embeds = model.get_input_embeddings()(short["input_ids"])
    place = short["input_ids"] == model.config.image_token_id
    rows = torch.cat(
        [r.reshape(-1, r.shape[-1]) for r in short["mm_encoder_outputs"]["image"].pooler_output]
    )
    embeds = embeds.masked_scatter(place[..., None], rows.to(embeds))
    with torch.no_grad():
        given = {"position_ids": short["position_ids"]} if told else {}
        wanted = model(inputs_embeds=embeds, attention_mask=short["attention_mask"], **given).logits
    claim = f"{tiny.name} does not read renumbered positions as a prompt put together by hand"
    require_same(logits, wanted, claim, **CLOSE)


def shorten(model, inputs, **options):
    """The function under test."""
    return compress(model, inputs, ByNorm(), 0.4, **options).inputs


def ragged(model, inputs, **options):
    """The same with another count for every crop."""
    return compress(model, inputs, Ragged(), 0.6, **options).inputs


def in_sieve(model, inputs, **options):
    """Tokens and logits of `answer` inside a sieve."""
    with sieve(model, ByNorm(), 0.4) as report:
        return (*answer(model, inputs, **options), report)
