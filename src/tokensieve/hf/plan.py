"""The arguments of `sieve` and `compress`, checked before any work is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tokensieve.budget import Pool, check_keep
from tokensieve.errors import ConfigError, UnknownNameError, UnsupportedError
from tokensieve.hf.families import decoder_of
from tokensieve.hf.fingerprint import encoder_info, llm_info
from tokensieve.hf.stages import Policy, Stage
from tokensieve.methods.base import Method
from tokensieve.methods.registry import get_method
from tokensieve.types import Signal, Site

Layers = int | Mapping[int, float | int] | None


@dataclass(frozen=True)
class Plan:
    """What to do to every call: a bound method, its budget and the policies around it.

    stages: where the LLM drops tokens, by layer; none: they never reach it.
    """

    name: str
    method: Method
    keep: float | int
    renumber: bool
    pool: Pool
    drop_newlines: bool
    stages: tuple[Stage, ...] = ()

    @property
    def policy(self) -> Policy:
        """What holds for all stages."""
        return Policy(self.pool, self.drop_newlines)

    def signals(self, model: Any) -> tuple[Signal, ...]:
        """What the method must be told of the encoder's attention layers."""
        return encoder_signals(model, self.method)

    @classmethod
    def of(
        cls, model: Any, method: str | Method, keep: float | int, *,
        positions: str, pool: str, newlines: str, options: Mapping[str, Any],
        layer: Layers = None, pure: bool = False,
    ) -> Plan:  # fmt: skip
        """Check every argument before any work is done. pure: nothing inside the LLM can change.

        Raises `ConfigError`, `BudgetError`, `UnknownNameError`, `UnsupportedError`.
        """
        name, chosen = _named(method, options)
        _one_of("positions", positions, ("keep", "renumber"))
        _one_of("newlines", newlines, ("keep", "drop"))
        _one_of("pool", pool, tuple(Pool))
        if chosen.site is Site.PIXELS and pool != Pool.CROP:
            raise UnsupportedError(
                f"Expected pool='crop' for '{name}', which shrinks every crop alike. Got '{pool}'."
            )
        if chosen.site is Site.LLM and pure:
            raise UnsupportedError(
                f"Expected a method that acts before the LLM. Got '{name}', which drops tokens "
                "inside it, where `compress` does not reach. Use `with sieve(model, ...)`."
            )
        keep = check_keep(keep)
        stages = _stages(model, name, chosen, keep, layer)
        if stages and positions == "renumber":
            raise ConfigError(
                "Expected positions='keep' where tokens are dropped inside the LLM, which has "
                "counted them by then. Got 'renumber'."
            )
        bound = stages[-1].method if stages else chosen.bind(encoder_info(model))
        keep = stages[-1].keep if stages else keep
        return cls(
            name, bound, keep, positions == "renumber", Pool(pool), newlines == "drop", stages
        )


def encoder_signals(model: Any, method: Method) -> tuple[Signal, ...]:
    """What `method` must be told of the attention layers of the encoder of `model`."""
    if method.site not in (Site.FEATURES, Site.EMBEDS):
        return ()
    return tuple(method.signals(encoder_info(model)).values())


def _named(method: str | Method, options: Mapping[str, Any]) -> tuple[str, Method]:
    if isinstance(method, str):
        return method, get_method(method, **options)
    name = type(method).__name__
    if options:
        raise ConfigError(
            f"Expected options only beside a method's name. Got {', '.join(options)} "
            f"beside an instance of {name}. Set them on the instance."
        )
    return name, method


def _one_of(what: str, got: str, known: tuple[str, ...]) -> None:
    if got not in known:
        raise UnknownNameError.of(what, got, known)


def _stages(
    model: Any, name: str, method: Method, keep: float | int, layer: Layers
) -> tuple[Stage, ...]:
    """The cuts inside the LLM, each method bound to the layer it reads."""
    inside = method.site is Site.LLM
    if layer is None:
        layer = method.llm_layer
    if layer is None:
        if inside:
            raise ConfigError(
                f"Expected `layer` beside '{name}', the LLM's layer from which on only kept tokens "
                "remain. Got none. Pass layer=K."
            )
        return ()
    wanted = dict(layer) if isinstance(layer, Mapping) else {layer: keep}
    _check_layers(wanted, len(decoder_of(model).layers))
    if not inside:
        _check_choice(name, method, wanted)
        bound = method.bind(encoder_info(model))
        return tuple(Stage(at, share, bound) for at, share in wanted.items())
    return tuple(
        Stage(at, share, method.bind(llm_info(model, at))) for at, share in sorted(wanted.items())
    )


def _check_layers(wanted: Mapping[int, float | int], depth: int) -> None:
    for at, share in wanted.items():
        if isinstance(at, bool) or not isinstance(at, int) or not 0 < at < depth:
            raise ConfigError(
                f"Expected `layer` from 1 to {depth - 1}, a decoder layer of the LLM behind its "
                f"first. Got {at!r}."
            )
        check_keep(share)
    shares = [wanted[at] for at in sorted(wanted)]
    for more, fewer in pairwise(shares):
        if isinstance(more, int) == isinstance(fewer, int) and fewer > more:
            raise ConfigError(
                f"Expected no more tokens at a later layer. Got {more} and then {fewer}."
            )
    if not wanted:
        raise ConfigError("Expected at least one layer of the LLM. Got none.")


def _check_choice(name: str, method: Method, wanted: Mapping[int, float | int]) -> None:
    """A method that chooses before the LLM may have its choice take effect at one layer of it."""
    if len(wanted) > 1:
        raise ConfigError(
            f"Expected one layer beside '{name}', which chooses once, before the LLM. Got "
            f"{len(wanted)}. Several take a method of the site 'llm'."
        )
    if method.site is Site.PIXELS:
        raise UnsupportedError(
            f"Expected a method that drops tokens. Got '{name}' with `layer`, which resizes the "
            "picture before the encoder. Leave `layer` out."
        )
