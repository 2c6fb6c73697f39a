"""What every method promises, as checks that raise AssertionError.

A check takes a method bound to ENCODER. `test_methods.py` runs all checks over the registry;
`test_methods_broken.py` shows for each check a method that fails it.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable
from dataclasses import replace

import torch
from torch.testing import assert_close

from tokensieve.errors import NonFiniteError
from tokensieve.methods.base import Method
from tokensieve.methods.registry import get_method
from tokensieve.types import EncoderInfo, Kind, Reduction, Site, TextContext, VisionTokens

GRID, WIDTH, PIXELS, KEY, TEXT = (5, 6), 16, 12, 8, 4
ENCODER = EncoderInfo("toy", WIDTH, -1, 2, 2, 32)
COUNTS = (4, 30, 11)


def vision(crops: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32) -> VisionTokens:
    """Crops of random tokens, pixels and signals, all real, with keys that are no ordinals."""
    g = torch.Generator().manual_seed(seed)
    L = GRID[0] * GRID[1]
    tokens = torch.randn(crops, L, WIDTH, generator=g).to(dtype)
    patches = torch.rand(crops, L, PIXELS, generator=g).to(dtype)
    return VisionTokens(
        tokens,
        grid=GRID,
        patches=patches,
        keys=tuple(7 + 3 * b for b in range(crops)),
        signals=Signals({kind: _signal(kind, crops, L, g).to(dtype) for kind in Kind}),
    )


class Signals(dict[str, torch.Tensor]):
    """Signals of every kind; `named` gives those a method asks for the names it has for them."""

    def named(self, method: Method) -> dict[str, torch.Tensor]:
        """By the method's own names. Two signals of one kind differ, padding stays zero."""
        asked = method.signals(ENCODER)
        return {
            name: _other(self[signal.kind], place) if place else self[signal.kind]
            for place, (name, signal) in enumerate(asked.items())
        }


def _other(signal: torch.Tensor, place: int) -> torch.Tensor:
    """Another signal of that kind, token by token: padding keeps its zeros, wherever it is."""
    return (signal * 97**place).frac() / (GRID[0] * GRID[1])


OF_TEXT = (Kind.TEXT_ATTENTION, Kind.TEXT_PRIORITY)


def _signal(kind: Kind, B: int, L: int, g: torch.Generator) -> torch.Tensor:
    """Made up, with the shape of its kind; rows of attention sum to at most 1."""
    if kind in (Kind.KEYS, Kind.ALL_KEYS, Kind.KEYS_UNROTATED):
        return torch.randn(B, L, KEY, generator=g)
    if kind is Kind.TEXT_KEY_NORMS:
        return torch.rand(TEXT, generator=g).expand(B, L, TEXT).clone()
    if kind is Kind.HEAD_MAPS:
        return torch.randn(B, L, L, 2, generator=g).softmax(2)
    columns = TEXT if kind in OF_TEXT else 1
    drawn = torch.randn(B, L, columns, generator=g)
    return drawn.softmax(1) if kind in OF_TEXT else drawn[..., 0].softmax(-1)


def padded(v: VisionTokens, junk: float) -> tuple[VisionTokens, torch.Tensor]:
    """The same tokens without a grid among padding that holds `junk`; and their places."""
    B, L, C = v.tokens.shape
    place = torch.tensor([i for i in range(L + 9) if i % 5 != 1][:L])
    tokens, patches = torch.full((B, L + 9, C), junk), torch.full((B, L + 9, PIXELS), junk)
    tokens[:, place], patches[:, place] = v.tokens, v.patches
    valid = torch.zeros(B, L + 9, dtype=torch.bool)
    valid[:, place] = True
    signals = Signals({kind: _spread(Kind(kind), s, place) for kind, s in v.signals.items()})
    return replace(
        v, tokens=tokens, grid=None, valid=valid, patches=patches, signals=signals
    ), place


def _spread(kind: Kind, signal: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """A signal among padding, of which no attention layer says anything: zeros."""
    B, L = signal.shape[0], len(place) + 9
    if kind is Kind.HEAD_MAPS:
        wide = signal.new_zeros(B, L, L, signal.shape[-1])
        wide[:, place[:, None], place] = signal
        return wide
    wide = signal.new_zeros(B, L, *signal.shape[2:])
    wide[:, place] = signal
    return wide


def reduce(method: Method, v: VisionTokens, counts: tuple[int, ...] = COUNTS) -> Reduction:
    return method.reduce(told(method, v), torch.tensor(counts[: len(v.tokens)]), text_for(method))


def told(method: Method, v: VisionTokens) -> VisionTokens:
    """The tokens with their signals by the method's names."""
    return replace(v, signals=v.signals.named(method)) if isinstance(v.signals, Signals) else v


def text_for(method: Method) -> TextContext | None:
    """A prompt's text for a method that reads it."""
    if "text" not in method.needs:
        return None
    return TextContext(torch.randn(TEXT, WIDTH, generator=torch.Generator().manual_seed(11)))


def check_budget(method: Method) -> None:
    """As many tokens as asked; at most as many, but at least one, where not `exact`; from half to
    twice as many where that is a mean."""
    if not method.budgeted:
        return
    for counts in (COUNTS, (1, 2, 29), (0, 7, 30)):
        got = reduce(method, vision(), counts).counts_B
        want = torch.tensor(counts)
        if method.exact:
            assert torch.equal(got, want)
        assert bool((got <= (2 * want if method.on_average else want)).all())
        if method.on_average:
            assert bool((2 * got >= want).all())
        assert bool((got > 0).eq(want > 0).all())


def check_shape(method: Method) -> None:
    """A boolean mask of the crops' shape, on their device; indices sorted and unique."""
    v = vision()
    reduction = reduce(method, v)
    assert reduction.kept.dtype == torch.bool
    assert reduction.kept.shape == v.tokens.shape[:2]
    assert reduction.kept.device == v.tokens.device
    for index in reduction.indices():
        assert index.tolist() == sorted(set(index.tolist()))


def check_valid_only(method: Method) -> None:
    """Padding is never kept."""
    v, _ = padded(vision(), junk=50.0)
    kept = reduce(method, v).kept
    assert not bool((kept & ~v.valid_BL).any())
    if method.budgeted and method.exact:
        assert torch.equal(kept.sum(-1), torch.tensor(COUNTS))


def check_partition(method: Method) -> None:
    """Where tokens are merged, every real one belongs to exactly one kept one; in the LLM, where
    some merge and some are dropped, to one or none."""
    for v in (vision(), padded(vision(), junk=3.0)[0]):
        r = reduce(method, v)
        if r.assign is None:
            continue
        joined = r.assign >= 0
        assert torch.equal(
            joined, v.valid_BL if method.site is not Site.LLM else joined & v.valid_BL
        )
        assert bool(r.kept.gather(1, r.assign.clamp_min(0))[joined].all())
        own = torch.arange(r.assign.shape[1]).expand_as(r.assign)
        assert torch.equal(r.assign[r.kept], own[r.kept])


def check_identity(method: Method) -> None:
    """Asked for all tokens, it keeps all of them bit for bit."""
    if not method.reads_picture:
        return
    for v in (vision(), replace(vision(), grid=None), padded(vision(), junk=9.0)[0]):
        r = method.reduce(told(method, v), v.valid_BL.sum(-1), text_for(method))
        assert torch.equal(r.kept, v.valid_BL)
        for got, tokens, valid in zip(r.apply(v.tokens), v.tokens, v.valid_BL, strict=True):
            assert torch.equal(got, tokens[valid])


def check_alone_as_in_batch(method: Method) -> None:
    """A crop is treated alike alone and in a batch."""
    v = vision()
    whole = reduce(method, v)
    for b in range(len(v.tokens)):
        cut = slice(b, b + 1)
        signals = Signals({kind: signal[cut] for kind, signal in v.signals.items()})
        one = VisionTokens(v.tokens[cut], v.grid, None, v.patches[cut], v.keys[cut], signals)
        single = method.reduce(told(method, one), torch.tensor(COUNTS[cut]), text_for(method))
        assert torch.equal(single.kept[0], whole.kept[b])
        assert_close(single.apply(one.tokens)[0], whole.apply(v.tokens)[b])


def check_padding(method: Method) -> None:
    """Padding changes nothing, whatever it holds."""
    if method.site is Site.PIXELS:  # a smaller picture needs its grid
        return
    plain = replace(vision(), grid=None)
    want = reduce(method, plain)
    for junk in (0.0, 100.0, float("nan")):
        v, place = padded(plain, junk)
        got = reduce(method, v)
        assert torch.equal(got.kept[:, place], want.kept)
        for a, b in zip(got.apply(v.tokens), want.apply(plain.tokens), strict=True):
            assert_close(a, b)


def check_dtype(method: Method) -> None:
    """New values have the dtype of the old ones, in half precision too."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        v = vision(dtype=dtype)
        for tokens in reduce(method, v).apply(v.tokens):
            assert tokens.dtype == dtype


def check_inputs_untouched(method: Method) -> None:
    """Tokens, mask, pixels and counts are as before."""
    v, _ = padded(vision(), junk=1.0)
    v = told(method, v)
    before, counts = copy.deepcopy(v), torch.tensor(COUNTS)
    method.reduce(v, counts, text_for(method))
    for field in ("tokens", "valid", "patches"):
        assert torch.equal(getattr(v, field), getattr(before, field))
    for name, signal in before.signals.items():
        assert torch.equal(v.signals[name], signal)
    assert counts.tolist() == list(COUNTS)


def check_deterministic(method: Method) -> None:
    """The same twice, whatever the global generator; another only for another seed."""
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = reduce(method, vision()).kept
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, reduce(method, vision()).kept)
    if method.stochastic:
        reseeded = replace(method, seed=12345)  # type: ignore[call-arg]
        assert not torch.equal(first, reduce(reseeded, vision()).kept)


def check_nan(method: Method) -> None:
    """NaN in a real token is an error, or does not matter because tokens are not read; NaN in a
    signal is an error."""
    v = vision()
    for name in method.signals(ENCODER):
        signals = dict(told(method, v).signals)
        signals[name] = signals[name].clone()
        signals[name][1, 3] = float("nan")
        assert f"'{name}'" in _complaint(method, replace(v, signals=signals))
    broken = v.tokens.clone()
    broken[1, 3, 0] = float("nan")
    try:
        kept = reduce(method, replace(v, tokens=broken)).kept
    except NonFiniteError:
        return
    unread = replace(vision(seed=5), signals=v.signals)
    assert torch.equal(kept, reduce(method, unread).kept) or "pixels" in method.needs


def check_reads(method: Method) -> None:
    """What says that it reads no tokens chooses the same whatever they are."""
    if method.reads_tokens or not method.budgeted:
        return
    v, other = vision(), vision(seed=5)
    kept = reduce(method, v).kept
    assert torch.equal(reduce(method, replace(v, tokens=other.tokens)).kept, kept)
    narrow = replace(v, tokens=torch.zeros(*v.tokens.shape[:2], 1))
    assert torch.equal(reduce(method, narrow).kept, kept)


def _complaint(method: Method, v: VisionTokens) -> str:
    """What a method says of numbers that are none; nothing if it does not mind."""
    try:
        reduce(method, v)
    except NonFiniteError as error:
        return str(error)
    return ""


def check_pool(method: Method) -> None:
    """A pooled budget is spent in full over groups of different grids."""
    if method.site is Site.ENCODER:  # a crop is encoded by itself
        return
    groups = [vision(2), replace(vision(1, seed=3), grid=(6, 5))]
    parts = method.reduce_pool([told(method, g) for g in groups], 40, text_for(method))
    for group, part in zip(groups, parts, strict=True):
        assert part.kept.shape == group.tokens.shape[:2]
    total = sum(int(part.counts_B.sum()) for part in parts)
    if method.budgeted:
        low, high = (20, 80) if method.on_average else (1, 40)
        assert total == 40 if method.exact else low <= total <= high


CHECKS: dict[str, Callable[[Method], None]] = {
    name.removeprefix("check_"): check
    for name, check in list(globals().items())
    if name.startswith("check_")
}


def require_promise(name: str, options: dict[str, object], check: str, method: Method) -> None:
    """The check; where it fails, which promise of which method is broken stands in front."""
    try:
        CHECKS[check](method)
    except AssertionError as found:
        what = f"{name}{options or ''} breaks the promise '{check}'"
        raise AssertionError(f"{what}: {inspect.getdoc(CHECKS[check])}\n{found}") from found


def check_config_round_trip(name: str, method: Method) -> None:
    """config -> JSON -> config makes an equal method."""
    assert get_method(name, **json.loads(json.dumps(method.options()))) == method
