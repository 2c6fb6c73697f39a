"""A selector as a file: engines choose what PyTorch chooses."""

import json
import sys

import numpy as np
import pytest
import torch

from tokensieve.errors import (
    ConfigError,
    MissingPackageError,
    UnsupportedError,
)
from tokensieve.functional.grid import beside
from tokensieve.nn.config import SelectorConfig
from tokensieve.nn.ranking import choose
from tokensieve.nn.selection import Selection
from tokensieve.nn.selector import Selector
from tokensieve.nn.shipped import folders
from tokensieve.serving.export import export_selector
from tokensieve.types import EncoderInfo, Site

SHIPPED = {folder.name: folder for folder in folders()}
ENGINES = ("onnxruntime", "openvino")
# crops, rows, columns, how many stay, what tokens there are, whether they have a grid
CASES = [
    (1, 24, 24, 115, "noise", True),
    (2, 16, 16, 64, "noise", False),
    (3, 5, 7, 9, "noise", True),
    (1, 9, 1, 5, "noise", True),
    (1, 1, 1, 1, "noise", True),
    (1, 6, 6, 99, "noise", True),  # more than there are: all
    (1, 26, 31, 300, "noise", True),
    (2, 9, 9, 30, "one token everywhere", True),
    (2, 9, 9, 30, "zeros", False),
    (1, 16, 16, 64, "runs of equal tokens", True),
]


def tokens_of(kind, B, L, C):
    generator = torch.Generator().manual_seed(L)
    if kind == "zeros":
        return torch.zeros(B, L, C)
    if kind == "one token everywhere":
        return torch.randn(B, 1, C, generator=generator).repeat(1, L, 1)
    if kind == "runs of equal tokens":
        return torch.randn(B, 8, C, generator=generator).repeat_interleave(L // 8, 1)
    return torch.randn(B, L, C, generator=generator)


@torch.no_grad()
def chosen(selector, tokens_BLC, count, grid):
    """What PyTorch keeps, as a sieve asks it."""
    B, L, _ = tokens_BLC.shape
    valid_BL = torch.ones(B, L, dtype=torch.bool)
    near = None if grid is None else beside(grid, 1).expand(B, -1, -1)
    counts_B = torch.full((B,), min(count, L))
    scores_BL = selector.scores(tokens_BLC, None, grid)
    mask_BL = choose(selector, tokens_BLC, scores_BL, counts_B, valid_BL, None, near)
    return mask_BL.nonzero()[:, 1].view(B, -1).numpy(), scores_BL.numpy()


def engine(name, file):
    """A function of named arrays that runs `file`."""
    if name == "onnxruntime":
        options = pytest.importorskip("onnxruntime").SessionOptions()
        options.intra_op_num_threads = 1
        session = sys.modules[name].InferenceSession(file, options)
        return lambda **given: session.run(["kept", "scores"], given)
    core = pytest.importorskip("openvino").Core()
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(file, "CPU", hints)

    def run(**given):
        found = compiled(given)
        return found["kept"], found["scores"]

    return run


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Each of the selectors that ship, exported once: (selector, file)."""
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    folder, made = tmp_path_factory.mktemp("export"), {}

    def get(name):
        if name not in made:
            selector = Selector.from_pretrained(SHIPPED[name])
            file = folder / f"{name}.onnx"
            made[name] = selector, file, export_selector(selector, file)
        return made[name]

    return get


@pytest.mark.parametrize("name", sorted(SHIPPED))
@pytest.mark.parametrize("by", ENGINES)
def test_engines_keep_what_pytorch_keeps(files, name, by):
    selector, file, _ = files(name)
    run = engine(by, file)
    for B, H, W, count, kind, gridded in CASES:
        tokens_BLC = tokens_of(kind, B, H * W, selector.config.encoder.width)
        want, scores = chosen(selector, tokens_BLC, count, (H, W) if gridded else None)
        got, told = run(
            tokens=tokens_BLC.numpy(),
            count=np.array(count),
            columns=np.array(W if gridded else 1),
        )
        np.testing.assert_array_equal(got, want, err_msg=f"{B} x {H} x {W}, {kind}")
        np.testing.assert_allclose(told, scores, atol=1e-4)


def test_words_depend_on_the_columns(files):
    """Without them neighbours are not known: the test above can fail."""
    _, file, _ = files("selector-nano2")
    run, tokens = engine("onnxruntime", file), tokens_of("noise", 1, 576, 192)
    of = [run(tokens=tokens.numpy(), count=np.array(115), columns=np.array(w))[0] for w in (24, 1)]
    assert (of[0] != of[1]).any()


@pytest.mark.parametrize("by", ENGINES)
def test_of_a_token_that_comes_again_as_many_stay(files, by):
    """Which one is decided by the last bit, so not the indices but what lies there is the same."""
    selector, file, _ = files("selector-nano2")
    tokens_BLC = tokens_of("noise", 1, 144, 192).repeat(1, 4, 1)
    want, _ = chosen(selector, tokens_BLC, 115, None)
    got, _ = engine(by, file)(tokens=tokens_BLC.numpy(), count=np.array(115), columns=np.array(1))
    assert sorted(got[0] % 144) == sorted(want[0] % 144)


def test_a_file_of_fixed_shapes(tmp_path):
    for package in ("onnx", "onnxscript", "openvino"):
        pytest.importorskip(package)
    selector = Selector.from_pretrained(SHIPPED["selector-nano2"])
    file = tmp_path / "fixed.xml"
    told = export_selector(selector, file, grid=(24, 24), keep=0.2)
    assert told["inputs"] == {"tokens": [1, 576, 192]}
    assert told["outputs"] == {"kept": [1, 115], "scores": [1, 576]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fixed.bin", "fixed.xml"]
    import openvino

    model = openvino.Core().read_model(file)
    assert [list(port.shape) for port in (*model.inputs, *model.outputs)] == [
        [1, 576, 192], [1, 115], [1, 576],
    ]  # fmt: skip
    assert json.loads(model.get_rt_info("tokensieve").value)["count"] == 115
    run = engine("openvino", file)
    for kind in ("noise", "runs of equal tokens", "zeros"):
        tokens_BLC = tokens_of(kind, 1, 576, 192)
        want, _ = chosen(selector, tokens_BLC, 115, (24, 24))
        np.testing.assert_array_equal(run(tokens=tokens_BLC.numpy())[0], want)


def test_the_file_says_what_it_is(files):
    selector, file, told = files("selector-nano")
    model = sys.modules["onnx"].load(file)
    (entry,) = (prop for prop in model.metadata_props if prop.key == "tokensieve")
    assert json.loads(entry.value) == json.loads(json.dumps(told))
    assert told["encoder"] == selector.config.to_dict()["encoder"]
    sizes = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == ["crops", "length", 128]
    sys.modules["onnx"].checker.check_model(model, full_check=True)
    with pytest.raises(ConfigError, match=r"Expected a new file to write to. Got .*nano.onnx"):
        export_selector(selector, file)


def tiny(rule="top", grid=None, site=Site.FEATURES, positions="none"):
    encoder = EncoderInfo("toy", 8, -1 if site is Site.FEATURES else 1, 2, 2, 16, grid, site)
    torch.manual_seed(0)
    return Selector(SelectorConfig(encoder, depth=1, rule=rule, positions=positions)).eval()


@torch.no_grad()
def test_the_module_ranks_by_score(tmp_path):
    """Of the rule "top", without an engine; ties go to the first."""
    selector = tiny()
    tokens_BLC = tokens_of("noise", 2, 20, 8)
    tokens_BLC[:, 10:] = tokens_BLC[:, :10]
    kept, scores = Selection(selector)(tokens_BLC, torch.tensor(7), torch.tensor(1))
    np.testing.assert_array_equal(kept.numpy(), chosen(selector, tokens_BLC, 7, None)[0])
    assert kept.tolist() == scores.topk(7).indices.sort().values.tolist()


def test_what_cannot_be_exported_is_said_before_anything_is_made(tmp_path, monkeypatch):
    file = tmp_path / "a.onnx"
    with pytest.raises(UnsupportedError, match="Expected weights whose rule is 'top' or 'diverse'"):
        export_selector(tiny("gated"), file)
    with pytest.raises(UnsupportedError, match="Got one of hidden states inside the LLM"):
        export_selector(tiny(site=Site.LLM), file)
    with pytest.raises(UnsupportedError, match="positions='sincos', whose table is made for one"):
        export_selector(tiny(positions="sincos"), file)
    with pytest.raises(ConfigError, match=r"`grid` and `keep` together.*Got only `keep`"):
        export_selector(tiny(), file, keep=0.4)
    with pytest.raises(ConfigError, match=r"Expected the grid \(4, 4\) of the encoder trained for"):
        export_selector(tiny(grid=(4, 4)), file, grid=(2, 8), keep=0.4)
    with pytest.raises(ConfigError, match=r"Expected a file of a kind .onnx or .xml"):
        export_selector(tiny(), tmp_path / "a.pt")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'tokensieve\[export\]'|onnx"):
        export_selector(tiny(), file)
    assert list(tmp_path.iterdir()) == []
