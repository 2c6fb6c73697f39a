"""The arguments of `sieve` and `compress`, checked before any work is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

from tokensieve.budget import Pool, Spread, check_keep
from tokensieve.errors import ConfigError, UnsupportedError
from tokensieve.fields import check_names, shown
from tokensieve.hf.asked import Asked, Keep, Keeps, Layers, calibrated, frames_of
from tokensieve.hf.calibrated import AUTO, Watch
from tokensieve.hf.encoder.places import require_rows
from tokensieve.hf.families.fingerprint import encoder_info, llm_info, warn_of_other_weights
from tokensieve.hf.families.table import decoder_of, family_of, first_cut
from tokensieve.hf.llm.inside import check_signals
from tokensieve.hf.llm.stage import Policy, Stage
from tokensieve.hf.report import Call, Report
from tokensieve.hf.steady import Steady
from tokensieve.methods.base import Method, TrainedFor
from tokensieve.methods.compose import composed
from tokensieve.methods.registry import get_method
from tokensieve.schedules import Schedule
from tokensieve.schedules.base import check_schedule, check_shrinks
from tokensieve.types import Signal, Site


@dataclass(frozen=True)
class Plan:
    """What to do to every call: a bound method, its budget and the policies around it.

    stages: where the LLM drops tokens, by layer; none: they never reach it.
    before: what another method does before the LLM, where two are composed; all shares are of the
        tokens there were at first.
    watch: looks at the pictures that go by. steady: corrects what is asked of each call.
    trusted: a model of an unlisted family need not prove itself.
    """

    name: str
    method: Method
    keep: float | int
    renumber: bool
    pool: Pool
    drop_newlines: bool
    stages: tuple[Stage, ...] = ()
    before: Plan | None = None
    watch: Watch | None = None
    steady: Steady | None = None
    frames: str | int | None = None
    trusted: bool = False

    @property
    def spread(self) -> Spread:
        """Over what the budget is spent."""
        return Spread(self.pool, self.frames)

    @property
    def policy(self) -> Policy:
        """What holds for all stages."""
        return Policy(self.spread, self.drop_newlines)

    @property
    def trained_by(self) -> str | None:
        """How the weights of its methods were trained, in words; None: no method has any."""
        return "; ".join(one.by for one in self._trained()) or None

    def _trained(self) -> list[TrainedFor]:
        methods = [self.method] if self.before is None else [self.before.method, self.method]
        told = (method.trained_for() for method in methods)
        return [one for one in told if one is not None]

    def report(self, calls: Sequence[Call] = (), history: int | None = None) -> Report:
        """A report of what it does, with these calls in it."""
        scorers = tuple(one.scorer for one in self._trained() if one.scorer is not None)
        return Report(
            self.name, self.keep, list(calls), self.pool, history, self.trained_by, scorers
        )

    def signals(self, model: Any) -> tuple[Signal, ...]:
        """What the method must be told of the encoder's attention layers."""
        return encoder_signals(model, (self.before or self).method)

    @classmethod
    def of(cls, model: Any, asked: Asked, *, pure: bool = False) -> Plan:
        """Check every argument before any work is done. pure: nothing inside the LLM can change.

        Raises `ConfigError`, `BudgetError`, `UnknownNameError`, `UnsupportedError`.
        """
        family_of(model)
        asked = replace(asked, layer=_plain(asked.layer))
        if asked.keep == AUTO or asked.calibration is not None:
            keep, watch = calibrated(model, asked)
            plan = cls.of(model, replace(asked, keep=keep, calibration=None), pure=pure)
            return replace(plan, watch=watch)
        if isinstance(asked.method, str | Method):
            return cls._of_one(model, asked, asked.method, pure=pure)
        first, second = _pair(asked.method, asked.keep, asked.options)
        alone = replace(asked, keep=first[1], layer=None, options={})
        before = cls._of_one(model, alone, first[0], pure=pure)
        alone = Asked(second[0], second[1], "keep", asked.pool, asked.newlines, asked.layer)
        after = cls._of_one(model, alone, second[0], pure=pure, reached=before.keep)
        return replace(after, name=f"{before.name}+{after.name}", before=before)

    @classmethod
    def _of_one(
        cls, model: Any, asked: Asked, method: str | Method, *, pure: bool, reached: Keep = 1.0
    ) -> Plan:
        """One method of those asked for. reached: what another before it keeps."""
        name, chosen = _named(method, asked.options)
        chosen = composed(chosen, recycle=asked.recycle, cover=asked.cover, site=asked.site)
        check_names("positions", [asked.positions], ("keep", "renumber"))
        check_names("newlines", [asked.newlines], ("keep", "drop"))
        check_names("pool", [asked.pool], tuple(Pool))
        _check_site(model, name, chosen.site, asked.pool, pure)
        budget, layer = check_keep(asked.keep), asked.layer
        stages = _stages(model, name, chosen, budget, layer, reached)
        renumber = asked.positions == "renumber"
        if stages and renumber:
            raise ConfigError(
                "Expected positions='keep' where tokens are dropped inside the LLM, which has "
                "counted them by then. Got 'renumber'."
            )
        bound = stages[-1].method if stages else chosen.bind(encoder_info(model))
        warn_of_other_weights(model, bound)
        if stages and (isinstance(layer, Mapping) or _fixed(layer)):
            budget = stages[-1].keep
        more: dict[str, Any] = {"frames": frames_of(name, chosen, asked), "trusted": asked.trusted}
        drop = asked.newlines == "drop"
        return cls(name, bound, budget, renumber, Pool(asked.pool), drop, stages, **more)


def encoder_signals(model: Any, method: Method) -> tuple[Signal, ...]:
    """What `method` must be told of the attention layers of the encoder of `model`."""
    if method.site not in (Site.FEATURES, Site.EMBEDS):
        return ()
    return tuple(method.signals(encoder_info(model)).values())


def _check_site(model: Any, name: str, site: Site, pool: str, pure: bool) -> None:
    """Raise `UnsupportedError` where a method of this site cannot do what is asked."""
    if site in (Site.PIXELS, Site.ENCODER) and pool != Pool.CROP:
        raise UnsupportedError(
            f"Expected pool='crop' for '{name}', which shrinks every crop alike. Got '{pool}'."
        )
    if site in (Site.ENCODER, Site.PATCHES):
        require_rows(model)
    if site is Site.LLM and pure:
        raise UnsupportedError(
            f"Expected a method that acts before the LLM. Got '{name}', which drops tokens "
            "inside it, where `compress` does not reach. Use `with sieve(model, ...)`."
        )


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


def _plain(layer: Any) -> Any:
    """A number of NumPy as Python's; anything else as it is."""
    if isinstance(layer, int):
        return layer
    return int(layer) if isinstance(layer, Integral) else layer


def _fixed(layer: Layers) -> bool:
    """Whether a schedule says by itself how much is kept."""
    return isinstance(layer, Schedule) and not layer.budgeted


def _pair(
    methods: Sequence[str | Method], keeps: Keeps, options: Mapping[str, Any]
) -> tuple[tuple[str | Method, Keep], tuple[str | Method, Keep]]:
    """Two methods and what each keeps: one before the LLM, one inside it."""
    if not isinstance(methods, list | tuple) or len(methods) != 2:
        raise ConfigError(
            "Expected a method or a pair of them, one before the LLM and one inside it. Got "
            f"{shown(methods)}. Pass (first, second)."
        )
    if options:
        raise ConfigError(
            f"Expected a pair of methods without options. Got {', '.join(options)}, which might "
            "be either's. Pass instances: get_method(name, option=...)."
        )
    if not isinstance(keeps, list | tuple) or len(keeps) != 2:
        raise ConfigError(
            "Expected `keep` as a pair, for each method its share of the tokens there are at "
            f"first. Got {shown(keeps)}. Pass keep=(more, fewer)."
        )
    more, fewer = (check_keep(keep) for keep in keeps)
    check_shrinks(more, fewer, "inside the LLM than before it")
    (first, before), (second, inside) = (_named(method, {}) for method in methods)
    if before.site is Site.LLM:
        raise ConfigError(
            f"Expected a method that acts before the LLM first. Got '{first}', which acts inside "
            "it. Put it second; inside the LLM there can be one."
        )
    if inside.site is not Site.LLM:
        raise ConfigError(
            f"Expected a method that acts inside the LLM second. Got '{second}', which acts before "
            f"it as '{first}' does. Use one of them."
        )
    return (methods[0], more), (methods[1], fewer)


def _stages(
    model: Any, name: str, method: Method, keep: Keep, layer: Layers, reached: Keep
) -> tuple[Stage, ...]:
    """The cuts inside the LLM, each method bound to the layer it reads."""
    inside = method.site is Site.LLM
    if layer is None and not inside:
        return ()
    depth = len(decoder_of(model).layers)
    require_layers(layer, depth)
    if isinstance(layer, int):
        wanted: dict[int, Keep] = {layer: keep}
    elif isinstance(layer, Mapping):
        wanted = dict(layer)
    else:
        wanted = _spread(model, name, method, keep, layer, reached, depth)
    check_schedule(wanted, depth)
    if min(wanted) < (least := first_cut(model)):
        raise ConfigError(
            f"Expected a layer from {least} on: {type(model).__name__} adds its encoder's features "
            f"to the visual tokens behind each of its first {least} layers. Got {min(wanted)}. "
            f"Pass layer=K with a whole K from {least} to {depth - 1}."
        )
    check_shrinks(reached, wanted[min(wanted)], "inside the LLM than before it")
    if not inside:
        _check_choice(name, method, wanted)
        bound = method.bind(encoder_info(model))
        return tuple(Stage(at, share, bound) for at, share in wanted.items())
    return tuple(_stage(model, name, method, at, share) for at, share in sorted(wanted.items()))


def require_layers(layer: object, depth: int) -> None:
    """Raise `ConfigError` for what is no way to say a layer of an LLM of `depth` layers."""
    if not isinstance(layer, int | Mapping | Schedule | None):
        raise ConfigError(
            "Expected `layer` as a layer's number, as {layer: keep} or as a schedule. Got "
            f"{shown(layer)}. Pass layer=K with a whole K from 1 to {depth - 1}."
        )


def _spread(
    model: Any, name: str, method: Method, keep: Keep, layer: Schedule | None, reached: Keep,
    depth: int,
) -> dict[int, Keep]:  # fmt: skip
    """Where and how much by a schedule, or by the method itself. A share is spread as one of what
    another method left, and told as one of all tokens."""
    shares = isinstance(keep, float) and isinstance(reached, float)
    asked = keep / reached if shares else keep
    if layer is not None:
        found: Mapping[int, Keep] | None = layer.stages(llm_info(model, 1), asked)
        shares &= layer.budgeted
    else:
        found = method.llm_stages(depth, asked)
    if found is None:
        raise ConfigError(
            f"Expected `layer` beside '{name}', the LLM's layer from which on only kept tokens "
            "remain. Got none. Pass layer=K."
        )
    if not shares or reached == 1:
        return dict(found)
    return {at: min(share * reached, reached) for at, share in found.items()}


def _stage(model: Any, name: str, method: Method, at: int, share: Keep) -> Stage:
    info = llm_info(model, at)
    bound = method.bind(info)
    signals = bound.signals(info)
    check_signals(signals, name)
    return Stage(at, share, bound, signals)


def _check_choice(name: str, method: Method, wanted: Mapping[int, float | int]) -> None:
    """A method that chooses before the LLM may have its choice take effect at one layer of it."""
    if len(wanted) > 1:
        raise ConfigError(
            f"Expected one layer beside '{name}', which chooses once, before the LLM. Got "
            f"{len(wanted)}. Several take a method of the site 'llm'."
        )
    if method.site in (Site.PIXELS, Site.PATCHES, Site.ENCODER):
        acts = "acts inside" if method.site is Site.ENCODER else "acts before"
        raise UnsupportedError(
            f"Expected a method that drops tokens. Got '{name}' with `layer`, which {acts} the "
            "encoder. Leave `layer` out."
        )
