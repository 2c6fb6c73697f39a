"""A model whose weights are not there: offloaded to CPU or disk, or both, by accelerate. Every
method's answer is the plain model's, bit for bit, and what is offloaded stays so.

Weights come to the CPU to be used here; layers on several devices are not run.
"""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch

from families.registry import CLOSED, ready, refused
from families.tiny import build
from tokensieve.errors import UnsupportedError
from tokensieve.hf.families.fingerprint import encoder_hash, encoder_info, llm_info, state_hash
from tokensieve.hf.runtime.devices import at_hand, input_device
from tokensieve.hf.sieve import compress, sieve
from tokensieve.methods.registry import method_names
from tokensieve.types import Site
from toys.quick import few

accelerate = pytest.importorskip("accelerate")

FAMILIES = ("llava", "llava_next", "qwen2_5_vl", "internvl")
MIXED = {
    "model.vision_tower": "disk", "model.multi_modal_projector": "cpu",
    "model.language_model": "disk", "lm_head": "cpu",
}  # fmt: skip


def told(model, inputs, method):
    options = {"layer": 2} if method.site is Site.LLM and method.llm_stages(3, 0.4) is None else {}
    with sieve(model, method, 0.4, **options) as report, torch.no_grad():
        forward = model(**inputs).logits
        out = model.generate(
            **inputs, max_new_tokens=2, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
    kept = [
        crop.kept
        for prompt in report.calls[-1].prompts
        for image in prompt.images
        for crop in image.crops
    ]
    return [forward, out.sequences, *out.logits, *kept]


def absent(model):
    return {name for name, weight in model.named_parameters() if weight.is_meta}


def saved(family, folder):
    model = build(family).model
    model.save_pretrained(folder / "plain")
    return type(model), folder / "plain"


def on_cpu(family, _folder):
    return accelerate.cpu_offload(copy.deepcopy(build(family).model), torch.device("cpu"))


def with_buffers(family, _folder):
    model = copy.deepcopy(build(family).model)
    return accelerate.cpu_offload(model, torch.device("cpu"), offload_buffers=True)


def on_disk(family, folder):
    model = copy.deepcopy(build(family).model)
    return accelerate.disk_offload(model, str(folder), torch.device("cpu"))


def by_map(family, folder):
    kind, where = saved(family, folder)
    return kind.from_pretrained(where, device_map=MIXED, offload_folder=folder / "away").eval()


def automatic(family, folder):
    """As much as goes into too little memory, and the rest on disk."""
    kind, where = saved(family, folder)
    return kind.from_pretrained(
        where, device_map="auto", max_memory={"cpu": "150KB"}, offload_folder=folder / "away"
    ).eval()


PLACES = {place.__name__: place for place in (on_cpu, with_buffers, on_disk, by_map, automatic)}


@pytest.fixture(scope="module")
def offloaded(tmp_path_factory):
    @cache
    def make(family, place):
        model = PLACES[place](family, tmp_path_factory.mktemp(place))
        model.generation_config = build(family).model.generation_config
        assert absent(model)
        return model

    return make


def kinds():
    """One method of each site and needs, with signals of attention and without."""
    model, found = build("llava").model, {}
    for name in method_names():
        method = ready(name, model)
        info = llm_info(model, 1) if method.site is Site.LLM else encoder_info(model)
        signals = bool(method.bind(info).signals(info))
        found.setdefault((method.site, method.needs, signals), name)
    return tuple(found.values())


@cache
def plainly(family, name):
    """What the plain model gives, or the error it refuses the method with."""
    plain = build(family)
    try:
        return told(plain.model, plain.inputs([1, 2]), ready(name, plain.model)), None
    except UnsupportedError as error:
        return None, str(error)


def check(family, model, name):
    plain = build(family)
    wanted, error = plainly(family, name)
    if error:  # said alike
        with pytest.raises(UnsupportedError) as got:
            told(model, plain.inputs([1, 2]), ready(name, model))
        assert str(got.value) == error
        return
    before = absent(model)
    got = told(model, plain.inputs([1, 2]), ready(name, plain.model))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert absent(model) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", method_names())
def test_every_method_on_a_model_offloaded_to_the_cpu(offloaded, name):
    check("llava", offloaded("llava", "on_cpu"), name)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", kinds())
@pytest.mark.one_of_each
def test_methods_of_every_kind_wherever_the_weights_are(offloaded, name, place):
    check("llava", offloaded("llava", place), name)


@pytest.mark.parametrize("family", FAMILIES[1:])
@pytest.mark.parametrize("name", kinds())
@pytest.mark.one_of_each(apart=refused)
def test_methods_of_every_kind_on_other_families(offloaded, name, family):
    check(family, offloaded(family, "on_disk"), name)


@pytest.mark.parametrize("family", few(FAMILIES))
def test_compress_and_hashes(offloaded, family):
    plain, model = build(family), offloaded(family, "on_disk")
    inputs = plain.inputs([1, 2])
    for name in ("divprune", "downsample", "tome"):
        if (name, family) in (("downsample", "internvl"), *(("tome", f) for f in CLOSED)):
            continue
        wanted, got = (compress(m, inputs, name, 0.4).inputs for m in (plain.model, model))
        rows, same = (one.pop("mm_encoder_outputs")["image"].pooler_output for one in (wanted, got))
        assert all(torch.equal(a, b) for a, b in zip(rows, same, strict=True))
        assert all(torch.equal(got[key], wanted[key]) for key in wanted)
    assert encoder_hash(model) == encoder_hash(plain.model)
    assert state_hash(model) == state_hash(plain.model)


def test_a_prompt_for_an_offloaded_model_is_put_on_the_cpu(offloaded):
    assert input_device(offloaded("llava", "on_cpu")) == torch.device("cpu")
    assert input_device(build("llava").model) == torch.device("cpu")


def test_weights_that_are_nowhere_are_told():
    with torch.device("meta"):
        module = torch.nn.Linear(2, 2)
    with (
        pytest.raises(UnsupportedError, match="Got a Linear on the meta device"),
        at_hand([module]),
    ):
        pass
