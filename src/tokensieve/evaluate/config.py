"""What an evaluation suite runs, read from `suite.json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tokensieve.budget import check_keep
from tokensieve.errors import ConfigError
from tokensieve.evaluate.tasks import TOPICS, USUAL
from tokensieve.fields import as_fields, check_fields, check_names, option, read_object, shown
from tokensieve.methods.registry import method_class, method_names
from tokensieve.types import Site

KEEPS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
PROMPTS = ("image-first", "ask-first")
KINDS = ("plain", "cluttered", "scene", "mixed")


@dataclass(frozen=True)
class Variant:
    """One row of the tables: a method with its options, once per seed.

    per_seed maps an option to its value for each seed, e.g. {"seed": [0, 1, 2]}.
    """

    name: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    per_seed: Mapping[str, list[Any]] = field(default_factory=dict)
    keeps: tuple[float, ...] | None = None  # None: the suite's
    models: tuple[str, ...] | None = None  # None: every model of the suite
    kinds: tuple[str, ...] | None = None  # None: every kind of the suite
    positions: str | None = None  # None: the suite's
    layer: int | None = None  # the LLM's layer where tokens are dropped; None: before the LLM

    def __post_init__(self) -> None:
        check_fields(self)

    def seeds(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(seed number, options) of each run of this row.

        Raises `ConfigError` where two options have different numbers of seeds.
        """
        lengths = {len(values) for values in self.per_seed.values()} or {1}
        if len(lengths) != 1:
            raise ConfigError(f"Expected equally many values per seed in variant '{self.name}'.")
        for i in range(lengths.pop()):
            yield i, {**self.options, **{k: v[i] for k, v in self.per_seed.items()}}

    def seeds_on(self, number: int, trained: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """The same on the model's seed `number` of `trained`: all where it has one, else its own.

        Raises `ConfigError` for another number of seeds than the model's.
        """
        runs = list(self.seeds())
        if trained == 1:
            yield from runs
        elif len(runs) in (1, trained):
            yield number, runs[number % len(runs)][1]
        else:
            raise ConfigError(
                f"Expected 1 or {trained} seeds in variant '{self.name}', as many as its model "
                f"has. Got {len(runs)}."
            )


@dataclass(frozen=True)
class Suite:
    """A whole evaluation.

    models: by name what `load_model` takes, or one for each seed that it was trained with; a
    variant of several seeds then has its i-th on the i-th of them.
    world: where the pictures come from; "synth" are those of `tokensieve.data.synth`.
    at_once: kinds held in memory, encoded; more kinds are asked about in turns.
    """

    suite: str
    variants: tuple[Variant, ...]
    models: Mapping[str, str | Sequence[str]] = field(default_factory=lambda: {"main": "nano"})
    kinds: tuple[str, ...] = KINDS
    topics: tuple[str, ...] = USUAL
    keeps: tuple[float, ...] = KEEPS
    pictures: int = option(1000, low=1, high=10**7)
    split: str = "test"
    batch: int = option(50, low=1, high=2**14)
    positions: str = "keep"
    # "ask-first": question + image + question
    prompt: str = option("image-first", choices=PROMPTS)
    world: str = "synth"
    at_once: int = option(8, low=1, high=100)
    registry: Mapping[str, Any] | None = None  # fields of a row for each method that has none yet

    def __post_init__(self) -> None:
        check_fields(self)

    def jobs(self) -> Iterator[Job]:
        """Every record of the suite, model by model, in the order of its variants: a run cut short
        has the rows that matter most."""
        for model, given in self.models.items():
            trained = (given,) if isinstance(given, str) else given
            for number, source in enumerate(trained):
                for variant in self.variants:
                    if variant.models is not None and model not in variant.models:
                        continue
                    for seed, options in variant.seeds_on(number, len(trained)):
                        for kind in variant.kinds or self.kinds:
                            if kind in self.kinds:
                                yield Job(kind, model, variant, seed, options, source)

    def queue(self, part: int, parts: int) -> list[Job]:
        """The jobs of shard `part` of `parts`: those of its own kinds, so that it need not make
        the other pictures, then, from the far end, those of the others, to help them finish. All
        of `at_once` kinds before the next ones."""
        turn = {kind: n // parts // self.at_once for n, kind in enumerate(self.kinds)}
        jobs = sorted(self.jobs(), key=lambda job: turn[job.kind])
        mine = [job for job in jobs if self.kinds.index(job.kind) % parts == part]
        return mine + [job for job in reversed(jobs) if job not in mine]


@dataclass(frozen=True)
class Job:
    """One record: a model, a variant with one seed, a kind."""

    kind: str
    model: str
    variant: Variant
    seed: int
    options: Mapping[str, Any]
    source: str  # of the model: what `load_model` takes

    @property
    def file_name(self) -> str:
        """Where its record lies inside the suite's folder."""
        return f"{self.model}--{self.kind}--{self.variant.name}--{self.seed}.json"

    def config(self, suite: Suite, fingerprints: Mapping[str, str]) -> dict[str, Any]:
        """Everything that decides the record's numbers; `fingerprints`: hashes of model, weights
        and pictures. Later options are left out at their defaults, so that records stay valid."""
        later = {"layer": self.variant.layer, "prompt": suite.prompt, "world": suite.world}
        return {k: v for k, v in later.items() if v not in (None, "image-first", "synth")} | {
            "suite": suite.suite,
            "model": self.model,
            "hashes": dict(fingerprints),
            "variant": self.variant.name,
            "method": self.variant.method,
            "options": dict(self.options),
            "seed": self.seed,
            "kind": self.kind,
            "topics": list(suite.topics),
            "keeps": list(self.variant.keeps or suite.keeps),
            "pictures": suite.pictures,
            "split": suite.split,
            "positions": self.variant.positions or suite.positions,
            "batch": suite.batch,
        }


def load_suite(path: Path, **overrides: Any) -> Suite:
    """Read a suite file; `overrides` that are not None replace its fields.

    Raises `ConfigError` for a missing file, bad JSON, or a field or `keep` that makes no sense.
    """
    raw = read_object(path, "a suite")
    raw |= {k: v for k, v in overrides.items() if v is not None}
    check_names("suite field", raw, (field.name for field in fields(Suite)))
    rows, row = raw.get("variants", []), raw.get("registry")
    if not (isinstance(rows, list) and all(isinstance(v, dict) for v in rows)):
        raise ConfigError(f"Expected `variants` as a list of objects in {path}. Got {shown(rows)}.")
    if not isinstance(row, dict | None):
        raise ConfigError(f"Expected `registry` as an object in {path}. Got {shown(row)}.")
    variants = [_variant(v) for v in rows]
    raw["variants"] = (*variants, *_from_registry(row, variants))
    suite = Suite(**as_fields(Suite, raw))
    for name, source in suite.models.items():
        if not source:
            raise ConfigError(
                f"Expected model '{name}' as what is loaded, or a list with one for each seed. "
                f"Got {source!r}."
            )
    check_names("topic", suite.topics, TOPICS)
    for keep in suite.keeps:
        check_keep(keep)
    return suite


def _variant(raw: Mapping[str, Any]) -> Variant:
    check_names("variant field", raw, (field.name for field in fields(Variant)))
    return Variant(**as_fields(Variant, raw))


def _from_registry(row: Mapping[str, Any] | None, named: Sequence[Variant]) -> Iterator[Variant]:
    """A row for every method without training that no variant names: new methods come by
    themselves. `positions`: a list, one row for each that the method's site can have; `sites`: a
    list of those that count, instead of all."""
    if row is None:
        return
    taken = {variant.method for variant in named}
    if not isinstance(policies := row.get("positions", ["keep"]), list):
        raise ConfigError(f"Expected `positions` of `registry` as a list. Got {shown(policies)}.")
    if not isinstance(sites := row.get("sites", list(Site)), list):
        raise ConfigError(f"Expected `sites` of `registry` as a list. Got {shown(sites)}.")
    check_names("site", sites, list(Site))
    shared = {k: v for k, v in row.items() if k not in ("positions", "sites")}
    for name in method_names():
        cls = method_class(name)
        if name in taken or cls.trained or cls.site not in sites:
            continue
        seeds = {"per_seed": {"seed": [0, 1, 2]}} if cls.stochastic else {}
        for policy in policies:
            if policy == "keep":
                yield _variant({**shared, **seeds, "name": name, "method": name})
            elif cls.site is not Site.LLM:
                renamed = {"name": f"{name}-renumbered", "method": name, "positions": policy}
                yield _variant({**shared, **seeds, **renamed})
