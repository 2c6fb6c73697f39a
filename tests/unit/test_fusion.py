"""Projectors that fuse tokens, held against slow loops written from the description."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tokensieve.errors import ConfigError, UnknownNameError
from tokensieve.nn.fusion import (
    FusionConfig,
    FusionProjector,
    MultiBlockFusion,
    SpatialFusion,
    spaced_blocks,
    unfold,
)

LLAVA = {"width": 1024, "out_width": 4096, "rows": 24, "columns": 24}
TINY = {"width": 6, "out_width": 10, "rows": 4, "columns": 6}


def parameters(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def drawn(**fields: object) -> FusionProjector:
    """A projector of `TINY` shape whose biases matter too."""
    torch.manual_seed(0)
    made = FusionProjector(FusionConfig(**{**TINY, **fields})).double()
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.5)
    return made


def gelu(x: float) -> float:
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def linear(layer: nn.Linear, x: list[float], *, activated: bool) -> list[float]:
    """One row through a linear layer (a 1x1 convolution), a number at a time."""
    out = []
    for weights, bias in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True):
        y = bias + sum(w * v for w, v in zip(weights, x, strict=True))
        out.append(gelu(y) if activated else y)
    return out


def two_layers(mlp: nn.Sequential, x: list[float], *, activated: bool) -> list[float]:
    return linear(mlp[2], linear(mlp[0], x, activated=True), activated=activated)


def reference(projector: FusionProjector, picture_LX: list[list[float]]) -> list[list[float]]:
    """The tokens of the LLM of one picture, cell after cell, as the papers describe them."""
    config = projector.config
    paper = config.form == "paper"
    tokens = picture_LX
    if projector.blocks is not None:
        tokens = [two_layers(projector.blocks.mlp, row, activated=paper) for row in tokens]
    k, C, columns = config.kernel, config.width, config.columns
    out = []
    for top in range(0, config.rows, k):
        for left in range(0, columns, k):
            cell = {
                (r, c): tokens[(top + r) * columns + left + c] for r in range(k) for c in range(k)
            }
            out += of_cell(projector, cell, k, C, paper)
    return out


def swiglu(mlp: torch.nn.Module, row: list[float]) -> list[float]:
    """down(silu(gate) * up), number by number."""

    def linear(name: str, given: list[float]) -> list[float]:
        layer = getattr(mlp, name)
        return [
            float(b) + sum(float(w) * x for w, x in zip(weights, given, strict=True))
            for weights, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
        ]

    gate, up = linear("gate", row), linear("up", row)
    return linear("down", [g / (1 + math.exp(-g)) * u for g, u in zip(gate, up, strict=True)])


def of_cell(
    projector: FusionProjector, cell: dict[tuple[int, int], list[float]], k: int, C: int,
    paper: bool,
) -> list[list[float]]:  # fmt: skip
    spatial, kind = projector.spatial, projector.config.kind
    places = [(r, c) for r in range(k) for c in range(k)]
    channel_major = [cell[place][channel] for channel in range(C) for place in places]
    if kind in ("avgpool", "mlp"):
        mean = [sum(cell[place][channel] for place in places) / k**2 for channel in range(C)]
        return [two_layers(spatial.mlp, mean, activated=False)]
    if kind == "swiglu":
        return [swiglu(spatial.mlp, cell[0, 0])]
    if kind == "concat":
        return [two_layers(spatial.mlp, channel_major, activated=False)]
    gathered = channel_major
    if paper:
        weight, bias = spatial.convolution.weight.tolist(), spatial.convolution.bias.tolist()
        gathered = []
        for out in range(k**2 * C):
            y = bias[out]
            for channel in range(C):
                for r, c in places:
                    y += weight[out][channel][r][c] * cell[r, c][channel]
            gathered.append(gelu(y))
    size = len(gathered) // projector.config.fused
    parts = [gathered[i * size : (i + 1) * size] for i in range(projector.config.fused)]
    return [two_layers(spatial.mlp, part, activated=paper) for part in parts]


@pytest.mark.parametrize(
    ("fields", "blocks", "spatial"),
    [
        # 8192*4096+4096 + 4096*1024+1024; 4096*16384+16384 + 16384*4096+4096
        ({"blocks": 8, "form": "release"}, 37_753_856, 134_238_208),
        # the same and a convolution of 4096*1024*4+4096
        ({"blocks": 8, "form": "paper"}, 37_753_856, 151_019_520),
        ({"kind": "mlp", "kernel": 1}, 0, 20_979_712),  # LLaVA-1.5's: 1024*4096 + 4096*4096
        # twice 1024*4096+4096, and 4096*4096+4096
        ({"kind": "swiglu", "kernel": 1}, 0, 25_178_112),
        # 4096*1024+1024 and 2048 told; 6 * (1024*1024+1024) and 3 * 2048; 1024*4+1024 gathered;
        # 4 * (1024*1024+1024) of attention; LLaVA-1.5's
        ({"kind": "quecc"}, 0, 35_684_352),
        ({"kind": "concat"}, 0, 33_562_624),  # 4096*4096+4096, twice
        ({"kind": "avgpool", "blocks": 8}, 37_753_856, 20_979_712),
        # of each of 2 tokens 2048 channels: 2048*8192+8192 + 8192*4096+4096
        ({"fused": 2, "form": "release"}, 0, 50_343_936),
    ],
)
def test_parameters_of_llava_7b(fields: dict[str, object], blocks: int, spatial: int) -> None:
    with torch.device("meta"):
        made = FusionProjector(FusionConfig(**LLAVA, **fields))
    assert parameters(made.blocks) == blocks
    assert parameters(made.spatial) == spatial


KINDS = [
    {"kind": "fusion", "form": "paper", "blocks": 3},
    {"kind": "fusion", "form": "release", "blocks": 3},
    {"kind": "fusion", "form": "paper", "fused": 2},
    {"kind": "fusion", "form": "release", "fused": 3},
    {"kind": "fusion", "form": "paper", "kernel": 1},
    {"kind": "concat", "blocks": 2},
    {"kind": "avgpool", "blocks": 2, "form": "release"},
    {"kind": "mlp", "kernel": 1},
    {"kind": "swiglu", "kernel": 1, "blocks": 2},
    {"kind": "fusion", "form": "release", "rows": 6, "columns": 3, "kernel": 3, "fused": 2},
]


@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_every_projector_is_the_description_s(fields: dict[str, object]) -> None:
    projector = drawn(**fields)
    config = projector.config
    generator = torch.Generator().manual_seed(1)
    L, X = config.rows * config.columns, config.blocks * config.width
    pictures = torch.randn(2, L, X, generator=generator, dtype=torch.float64)
    found = projector(pictures)
    assert found.shape == (2, config.tokens, config.out_width)
    wanted = torch.tensor([reference(projector, p) for p in pictures.tolist()]).double()
    assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_rows_of_the_last_layers_are_as_the_config_says(fields: dict[str, object]) -> None:
    projector = drawn(**fields)
    config, seen = projector.config, []
    projector.spatial.mlp.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    projector(torch.zeros(2, config.rows * config.columns, config.blocks * config.width).double())
    assert [part.shape for part in seen] == [(2, config.tokens, config.row_width)]
    grid = config.token_grid
    assert grid == (config.cells if config.fused == 1 else None)
    assert grid is None or grid[0] * grid[1] == config.tokens


def test_cells_lie_in_reading_order_and_channels_before_places() -> None:
    """A 2 x 4 picture whose token i says (i, 10 + i)."""
    tokens = torch.tensor([[[float(i), 10.0 + i] for i in range(8)]])
    cells = unfold(tokens, (2, 4), 2)
    assert cells.tolist() == [[
        [0, 1, 4, 5, 10, 11, 14, 15],
        [2, 3, 6, 7, 12, 13, 16, 17],
    ]]  # fmt: skip


def test_a_convolution_is_an_unfold_with_reordered_weights() -> None:
    """So the two forms gather alike, but for the weights and the activation."""
    torch.manual_seed(0)
    paper, release = SpatialFusion(6, 10, form="paper"), SpatialFusion(6, 10, form="release")
    tokens = torch.randn(2, 24, 6)
    weight = paper.convolution.weight.flatten(1)  # channel, row, column: as the unfold has them
    by_hand = release.gather(tokens, (4, 6)) @ weight.T + paper.convolution.bias
    assert_close(paper.gather(tokens, (4, 6)), nn.functional.gelu(by_hand))


def test_a_broken_order_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Places before channels, as an unfold of tokens side by side would have it."""

    def token_major(tokens: Tensor, grid: tuple[int, int], kernel: int) -> Tensor:
        cells = unfold(tokens, grid, kernel)
        B, N, X = cells.shape
        return cells.view(B, N, X // kernel**2, kernel**2).transpose(2, 3).flatten(2)

    monkeypatch.setattr("tokensieve.nn.fusion.unfold", token_major)
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        test_every_projector_is_the_description_s(KINDS[1])


@pytest.mark.parametrize(
    ("kernel", "fused", "tokens"),
    [(1, 1, 576), (2, 1, 144), (2, 2, 288), (4, 4, 144), (4, 8, 288), (8, 16, 144), (8, 32, 288)],
)
def test_the_papers_grid_of_kernels_and_tokens(kernel: int, fused: int, tokens: int) -> None:
    assert FusionConfig(**LLAVA, kernel=kernel, fused=fused).tokens == tokens


def test_blocks_are_evenly_spaced() -> None:
    assert spaced_blocks(24, 8) == (3, 6, 9, 12, 15, 18, 21, 24)
    assert spaced_blocks(26, 4) == (6, 13, 19, 26)
    assert spaced_blocks(3, 3) == (1, 2, 3)
    assert spaced_blocks(12, 1) == (12,)
    for count in (0, 25):
        with pytest.raises(ConfigError, match=f"Expected 1 to 24 blocks.* Got {count}"):
            spaced_blocks(24, count)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kernel": 5}, r"divides the encoder's grid of 24 x 24 .*Got 5. Kernels that do: 1, 2, 3"),
        ({"rows": 18, "kernel": 4}, "grid of 18 x 24 tokens. Got 4. Kernels that do: 1, 2, 3, 6"),
        ({"fused": 3}, "Expected `fused` to divide the 4096 channels of a cell. Got 3"),
        ({"kernel": 0}, "Expected `kernel` of at least 1. Got 0"),
        ({"fused": True}, "Expected `fused` as a whole number. Got True"),
        ({"blocks": 0}, "Expected `blocks` of at least 1. Got 0"),
        ({"kind": "mlp"}, "Expected kernel 1 for the kind 'mlp'.*Got 2"),
        ({"kind": "concat", "fused": 2}, "Expected 1 fused token for the kind 'concat'. Got 2"),
    ],
)
def test_shapes_that_cannot_be(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        FusionConfig(**{**LLAVA, **fields})


def test_unknown_kinds_and_forms() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'concat'"):
        FusionConfig(kind="concatenate")
    with pytest.raises(UnknownNameError, match="Did you mean 'release'"):
        FusionConfig(form="released")


@pytest.mark.parametrize("kind", ["fusion", "concat", "avgpool"])
@pytest.mark.parametrize("form", ["paper", "release"])
def test_pictures_of_another_shape(kind: str, form: str) -> None:
    projector = FusionProjector(FusionConfig(**TINY, kind=kind, form=form, blocks=2))
    with pytest.raises(ConfigError, match=r"Expected 12 channels.*Got 6. Read the blocks"):
        projector(torch.zeros(1, 24, 6))
    with pytest.raises(ConfigError, match=r"Expected 4 x 6 tokens.* without CLS. Got 25"):
        projector(torch.zeros(1, 25, 12))
    with pytest.raises(ConfigError, match=r"grid of 8 x 3 tokens. Got 2. Kernels that do: 1"):
        projector.spatial(torch.zeros(1, 24, 6), (8, 3))


def test_several_blocks_begin_as_one() -> None:
    """Before training, fusion of blocks hands on the last one; every weight still gets a gradient
    that can change that."""
    torch.manual_seed(0)
    blocks = torch.randn(2, 5, 3 * 8)
    for block, wanted in ((-1, blocks[..., 16:]), (0, blocks[..., :8])):
        module = MultiBlockFusion(8, 3, "release")
        module.pass_through(block)
        assert_close(module(blocks), wanted, rtol=0, atol=1e-5)
    rectified = MultiBlockFusion(8, 3)
    rectified.pass_through()
    assert_close(rectified(blocks), torch.nn.functional.gelu(blocks[..., 16:]))
    whole = FusionProjector(FusionConfig(8, 12, 2, 2, blocks=3, form="release"))
    inputs = torch.randn(2, 4, 24)
    one = FusionProjector(FusionConfig(8, 12, 2, 2, form="release"))
    one.spatial.load_state_dict(whole.spatial.state_dict())
    assert_close(whole(inputs), one(inputs[..., 16:]), rtol=0, atol=1e-5)
    whole(inputs).square().sum().backward()
    last = whole.blocks.mlp[2].weight.grad
    assert bool((last.abs().sum(0) > 0).all())


@pytest.mark.parametrize("kind", ["fusion", "concat", "avgpool"])
@pytest.mark.parametrize("form", ["paper", "release"])
def test_signals_neither_fade_nor_grow(kind: str, form: str) -> None:
    """Tokens still differ behind five drawn layers, and by no more than they did before them."""
    torch.manual_seed(0)
    config = FusionConfig(64, 64, 4, 4, blocks=4, kind=kind, form=form)
    with torch.no_grad():
        out = FusionProjector(config)(torch.randn(8, 16, 256))
    assert 0.2 < float(out.std((0, 1)).mean()) < 2
    torch.manual_seed(0)
    plain = FusionProjector(config)
    for layer in plain.modules():  # as PyTorch draws them: nearly all alike
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            layer.reset_parameters()
    if kind == "fusion" and form == "paper":
        with torch.no_grad():
            assert float(plain(torch.randn(8, 16, 256)).std((0, 1)).mean()) < 0.02
