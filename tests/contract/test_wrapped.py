"""Models inside others, and compiled ones: each is exact, or refused by a word on what to pass."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from families import checks, inside
from families.registry import ready
from families.tiny import build
from tokensieve.errors import UnsupportedError
from tokensieve.hf.runtime import hooks
from tokensieve.hf.sieve import compress, sieve

# before the encoder, in it, behind it with its attention and without, in the LLM
SITES = {"downsample": {}, "tome": {}, "fastervlm": {}, "divprune": {}, "fastv": {"layer": 2}}


def told(model, inputs, name, plain=None):
    method = ready(name, plain or model)
    with sieve(model, method, 0.4, **SITES[name]) as report, torch.no_grad():
        out = model.generate(
            **inputs, max_new_tokens=3, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        forward = model(**inputs).logits
    assert 0 < report.kept_tokens < report.visual_tokens
    return [forward, out.sequences, *out.logits]


@pytest.fixture
def model():
    return copy.deepcopy(build("llava").model)


@pytest.fixture
def inputs():
    return build("llava").inputs([1, 2])


def adapted(model):
    """With adapters that change what it says, everywhere."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj", "k_proj", "linear_1", "fc1"], init_lora_weights=False
    )
    return peft.get_peft_model(model, config).eval()


WRAPPED = {
    "parallel": (torch.nn.DataParallel, "model.module"),
    "compiled": (lambda model: torch.compile(model, backend="eager"), "model._orig_mod"),
    "peft": (adapted, "model.get_base_model()"),
    "around": (lambda model: torch.nn.ModuleDict({"module": model}), "model.module"),
    "pipeline": (lambda model: SimpleNamespace(model=model), "what its `.model` is"),
    "processor": (lambda _: SimpleNamespace(image_processor=1, tokenizer=1), "a processor. Pass"),
}


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("name", ["divprune", "tome", "fastv"])
@pytest.mark.one_of_each
def test_a_wrapper_is_refused_with_what_to_pass(model, inputs, kind, name):
    wrap, hint = WRAPPED[kind]
    wrapped = wrap(model)
    with pytest.raises(UnsupportedError) as error, sieve(wrapped, name, 0.4, **SITES[name]):
        pass
    assert hint in str(error.value)
    if name != "fastv":
        with pytest.raises(UnsupportedError, match=r"pass that one|Pass the model"):
            compress(wrapped, inputs, name, 0.4)
    assert not hooks._MOUNTS


@pytest.mark.parametrize("name", SITES)
def test_adapters_stay_at_work_and_merged_ones_too(model, inputs, name):
    wrapped = adapted(model)
    base = wrapped.get_base_model()
    got, plain = told(base, inputs, name), told(build("llava").model, inputs, name)
    assert not torch.equal(got[0], plain[0])  # the adapters say something
    whole = copy.deepcopy(wrapped).merge_and_unload()
    merged = told(whole, inputs, name)
    assert_close(merged[0], got[0], rtol=1e-3, atol=1e-3)
    with torch.no_grad(), sieve(base, ready(name, base), 0.4, **SITES[name]):
        assert torch.equal(wrapped(**inputs).logits, got[0])  # called through the wrapper


@pytest.mark.parametrize("part", ["", "model", "model.language_model", "model.vision_tower"])
@pytest.mark.parametrize("name", SITES)
@pytest.mark.one_of_each
def test_what_was_compiled_in_place_runs_as_written_where_hooks_are(model, inputs, part, name):
    calls = []

    def backend(graph, _example):
        calls.append(graph)
        return graph.forward

    module = model.get_submodule(part)
    module.compile(backend=backend)
    compiled = module._compiled_call_impl
    hooked = {"": tuple(SITES), "model": ("fastv", "tome"), "model.language_model": ("fastv",)}
    if name not in hooked.get(part, ("tome", "fastervlm")):
        pytest.skip("nothing is hooked inside")
    got, wanted = told(model, inputs, name), told(build("llava").model, inputs, name)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert not calls
    assert module._compiled_call_impl is compiled
    assert not hooks._MOUNTS


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("model.language_model", "fastv"), ("model.language_model.layers.1", "fastv"),
        ("model", "fastv"), ("model.vision_tower", "tome"), ("model.vision_tower", "fastervlm"),
        ("model.vision_tower.encoder.layers.0", "tome"),
    ],
)  # fmt: skip
def test_hooks_in_a_compiled_part_are_refused(model, inputs, part, name):
    found = [n for n, _ in model.named_modules() if n.endswith(part.removeprefix("model."))]
    part = part if part in dict(model.named_modules()) else found[0]
    owner, _, own = part.rpartition(".")
    inner = model.get_submodule(part)
    setattr(model.get_submodule(owner), own, torch.compile(inner, backend="eager"))
    with pytest.raises(UnsupportedError, match=r"Got torch\.compile of .*_orig_mod"):
        told(model, inputs, name, build("llava").model)
    assert not hooks._MOUNTS


def test_a_compiled_part_without_hooks_is_left_alone(model, inputs):
    model.model.multi_modal_projector = torch.compile(
        model.model.multi_modal_projector, backend="eager"
    )
    got, wanted = told(model, inputs, "divprune"), told(build("llava").model, inputs, "divprune")
    assert_close(got, wanted)


DDP = """
import torch, sys
from torch.nn.parallel import DistributedDataParallel
from contract.test_wrapped import SITES, told
from families.registry import ready
from families.tiny import build
from tokensieve.errors import UnsupportedError
from tokensieve.hf.sieve import sieve
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0,
                                     world_size=1)
tiny = build("llava")
model, inputs = tiny.model, tiny.inputs([1, 2])
wrapped = DistributedDataParallel(model)
for name, options in SITES.items():
    wanted = told(model, inputs, name)[0]
    with torch.no_grad(), sieve(model, ready(name, model), 0.4, **options):
        assert torch.equal(wrapped(**inputs).logits, wanted), name
try:
    sieve(wrapped, "divprune").__enter__()
except UnsupportedError as error:
    assert "model.module" in str(error)
torch.distributed.destroy_process_group()
print("exact")
"""


@pytest.mark.slow
def test_a_forward_through_ddp_is_exact(tmp_path):
    here = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DDP, str(tmp_path / "meeting")],
        capture_output=True, text=True, timeout=300, check=False, cwd=here,
    )  # fmt: skip
    assert done.stdout.strip().endswith("exact"), done.stderr


def nf4(part):
    bnb = pytest.importorskip("bitsandbytes")
    for name, child in part.named_children():
        if type(child) is torch.nn.Linear:
            weight = bnb.nn.Params4bit(child.weight.data, requires_grad=False, quant_type="nf4")
            made = bnb.nn.Linear4bit(child.in_features, child.out_features, bias=False,
                                     quant_type="nf4", compute_dtype=torch.float32)  # fmt: skip
            made.weight = weight
            setattr(part, name, made.to("cpu"))
        else:
            nf4(child)


def integers(part, bits):
    quantization = pytest.importorskip("torchao.quantization")
    if bits == 8:
        quantization.quantize_(part, quantization.Int8WeightOnlyConfig())
        return
    group = quantization.granularity.PerGroup(32)
    config = quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=group)
    quantization.quantize_(part, config)


FEWER_BITS = {
    "bitsandbytes": nf4, "torchao 8": lambda part: integers(part, 8),
    "torchao 4": lambda part: integers(part, 4),
}  # fmt: skip


@pytest.mark.parametrize("kind", FEWER_BITS)
def test_an_llm_of_fewer_bits_is_cut_as_exactly(model, kind):
    """As if blocked, before the LLM and inside it; keep=1 is the model itself, bit for bit."""
    plain = build("llava")
    FEWER_BITS[kind](model.model.language_model)
    tiny = SimpleNamespace(name="llava", model=model, inputs=plain.inputs)
    with torch.no_grad():
        logits = [one(**plain.inputs([1])).logits for one in (model, plain.model)]
    assert not torch.allclose(*logits)
    checks.check_blocked(tiny, checks.shorten)
    inside.check_blocked(tiny, 1)
    inside.check_identity(tiny, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_keeps_its_promises(model, dtype):
    """Inside the LLM too: keep=1 is the model itself, and what is kept is what a prompt holds."""
    model = model.to(dtype)
    plain = build("llava")

    def halved(pictures):
        inputs = plain.inputs(pictures)
        return inputs | {"pixel_values": inputs["pixel_values"].to(dtype)}

    tiny = SimpleNamespace(name="llava", model=model, inputs=halved)
    inside.check_identity(tiny, 1)
    inside.check_cache(tiny, {1: 0.6, 2: 0.3})
    checks.check_cache(tiny, checks.shorten)


def test_a_compiled_decoder_reads_the_shorter_prompt(model, inputs):
    """Before the LLM nothing of it is hooked: compiled, it answers as it did."""
    model.model.language_model = torch.compile(model.model.language_model, backend="eager")
    got, wanted = told(model, inputs, "divprune"), told(build("llava").model, inputs, "divprune")
    assert_close(got, wanted)
