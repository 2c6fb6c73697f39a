"""What a server is told: one method, its budget, and how far a request may go from it.

{"method": "selector", "keep": 0.4}
{"method": "divprune", "keep": 0.4, "least": 0.1, "pool": "image"}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tokensieve.budget import Pool, check_frames, check_keep
from tokensieve.errors import BudgetError, ConfigError, UnsupportedError
from tokensieve.fields import check_names, shown
from tokensieve.hf.asked import Asked
from tokensieve.methods.base import Method
from tokensieve.methods.registry import get_method
from tokensieve.types import EncoderInfo, Site

NAME = "tokensieve"  # of the entry in a model's config, and among a request's processor arguments
_BESIDE = ("pool", "newlines", "frames")  # of `sieve`, which mean here what they mean there
_UNFIT = ("layer", "history", "site", "calibration")


@dataclass(frozen=True)
class Setting:
    """A method and its budget, as `sieve` takes them.

    least: the smallest share a request may ask for; None: a request cannot choose. positions: only
    what the engine does anyway, so that a server can say it. options: the method's own.
    """

    method: str
    keep: float | int
    least: float | None = None
    positions: str | None = None
    beside: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: object) -> Setting:
        """From an object as JSON has it. Raises `ConfigError`, `BudgetError`, `UnknownNameError`,
        `UnsupportedError`."""
        if not isinstance(given, Mapping) or "method" not in given or "keep" not in given:
            raise ConfigError(
                f'Expected "{NAME}" as an object with "method" and "keep". Got {shown(given)}. '
                'Write {"method": "selector", "keep": 0.4}.'
            )
        values = dict(given)
        name, keep = values.pop("method"), check_keep(values.pop("keep"))
        for key in _UNFIT:
            if key in values:
                raise UnsupportedError(
                    f"Expected a setting of a server. Got '{key}', which an engine that counts a "
                    "picture's rows beforehand cannot follow. Leave it out."
                )
        least, positions = values.pop("least", None), values.pop("positions", None)
        if positions is not None:
            check_names("positions", [positions], ("keep", "renumber"))
        beside = {key: values.pop(key) for key in _BESIDE if key in values}
        check_names("pool", [beside.get("pool", Pool.CROP)], (Pool.CROP, Pool.IMAGE))
        check_names("newlines", [beside.get("newlines", "keep")], ("keep", "drop"))
        check_frames(beside.get("frames"))
        require_servable(name, get_method(name, **values))
        return cls(name, keep, _least(least, keep), positions, beside, values)

    def asked(self, positions: str) -> Asked:
        """The same as asked of `sieve`. positions: what the engine does."""
        if self.positions not in (None, positions):
            raise UnsupportedError(
                f"Expected positions='{positions}', as this engine counts them for this family. "
                f"Got '{self.positions}'. Leave it out."
            )
        own = {key: self.options[key] for key in ("recycle", "cover") if key in self.options}
        rest = {key: value for key, value in self.options.items() if key not in own}
        return Asked(self.method, self.keep, positions, options=rest, **own, **self.beside)

    def keep_of(self, request: object) -> float | int:
        """What a request keeps that says `{"keep": share}`; None: what the server says.

        Raises `ConfigError` for what is none, `BudgetError` outside of what the server allows.
        """
        if request is None:
            return self.keep
        if not isinstance(request, Mapping) or set(request) != {"keep"}:
            raise ConfigError(
                f'Expected "{NAME}" of a request as {{"keep": share}}. Got {shown(request)}.'
            )
        keep = check_keep(request["keep"])
        if keep == self.keep:
            return self.keep
        if self.least is None:
            raise BudgetError(
                f"Expected keep={self.keep}, which this server is set to for all requests. Got "
                f'{keep}. Leave it out, or start the server with "least".'
            )
        if not self.least <= keep <= self.keep or isinstance(keep, int):
            raise BudgetError(
                f"Expected `keep` of a request from {self.least} to {self.keep}, as this server "
                f"allows. Got {keep}."
            )
        return keep

    def key(self, keep: float | int) -> str:
        """What tells rows made by this setting from others, for the engine's caches."""
        values = {"method": self.method, "keep": keep, **self.beside, **self.options}
        return json.dumps(values, sort_keys=True, default=str)


def _least(least: object, keep: float | int) -> float | None:
    if least is None:
        return None
    checked = check_keep(least)
    if isinstance(keep, int) or isinstance(checked, int) or checked > keep:
        raise BudgetError(
            f"Expected `least` as a share of at most `keep`, which is {keep}, a share too. Got "
            f"{shown(least)}."
        )
    return checked


def require_servable(name: str, method: Method) -> None:
    """Raise `UnsupportedError` for a method whose choice an engine cannot wait for."""
    why = None
    if "text" in method.needs or method.conditional:
        why = "which reads the question; an engine encodes a picture without it"
    elif method.site is Site.LLM:
        why = "which drops tokens inside the LLM, whose layers are the engine's own"
    elif method.site not in (Site.FEATURES, Site.EMBEDS):
        why = "which acts inside the encoder or before it, and the encoder is the engine's own"
    elif not method.reads_picture:
        why = "which leaves no row of a picture"
    elif not method.exact or method.on_average:
        why = "which decides itself how many tokens stay; an engine counts them beforehand"
    if why is not None:
        raise UnsupportedError(
            "Expected a method that chooses by the picture alone, before the LLM, and keeps as "
            f"many tokens as asked. Got '{name}', {why}. Use 'selector' or 'divprune', or serve "
            "with Transformers."
        )


def require_no_signals(name: str, method: Method, encoder: EncoderInfo) -> None:
    """Raise `UnsupportedError` for a method that reads attention of the encoder's layers."""
    if method.signals(encoder):
        raise UnsupportedError(
            f"Expected a method that reads tokens. Got '{name}', which reads the attention of the "
            "encoder's layers, and the engine's own encoder keeps none. Use 'selector' or "
            "'divprune', or serve with Transformers."
        )
