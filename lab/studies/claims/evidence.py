"""What the records say of each of the papers' claims, in words and numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab.studies.claims.choose import Record, chosen
from lab.trained.spec import variants
from tokensieve.train.selector.recipe import load_preset

SEEN, PARTLY, NOT_SEEN, NOT_RUN = "seen", "partly", "not seen", "not run"
FULL_LENGTH = ("printed-first", "printed-second", "best-first", "best-second")
NAMES = {
    "printed-first": "first paper, printed", "printed-second": "follow-up, printed",
    "best-first": "first paper, best reading", "best-second": "follow-up, best reading",
}  # fmt: skip
Said = tuple[str, str]  # what became of a claim, and the numbers


@dataclass(frozen=True)
class Evidence:
    """Records of a spec by training; of peers by method and seed. stability: records that the study
    of that name makes of these weights."""

    spec: Mapping[str, Any]
    found: Mapping[str, Record]
    stability: Sequence[Record] = ()

    @property
    def text(self) -> str:
        """The kind of picture that is read."""
        return str(self.spec["kinds"][0])

    @property
    def calm(self) -> str:
        """The kind of which coarse things are asked."""
        return str(self.spec["kinds"][-1])

    def runs(self, group: str, variant: str) -> list[Record]:
        """Records of a variant, of the seeds that ran and did not diverge."""
        ones = variants(self.spec, group, chosen(self.spec, self.found)).get(variant, [])
        every = [self.found[one.folder] for one in ones if one.folder in self.found]
        return [record for record in every if "scores" in record]

    def system(self, group: str) -> list[Record]:
        """Records of a group of one variant."""
        return self.runs(group, next(iter(self.spec["groups"][group]["variants"])))

    def peer(self, name: str) -> list[Record]:
        """Records of a method that this study does not train."""
        return [r for stem, r in sorted(self.found.items()) if stem.startswith(f"peers-{name}-")]

    def by_variant(self, group: str, kind: str, keep: float) -> dict[str, float]:
        """Exact match in per cent of the variants of a group that ran, seeds' mean."""
        means = {
            name: exact(self.runs(group, name), kind, keep)
            for name in self.spec["groups"][group]["variants"]
        }
        return {name: mean for name, mean in means.items() if mean is not None}


def exact(records: Sequence[Record], kind: str, keep: float) -> float | None:
    """Mean exact match in per cent; None without records."""
    if not records:
        return None
    return statistics.fmean(100 * r["scores"][kind][f"{keep:g}"]["mean"] for r in records)


def last(record: Record, name: str = "kept") -> float:
    """Mean of the last tenth of a training's curve."""
    values = [point[name] for point in record["curve"]]
    return statistics.fmean(values[-max(1, len(values) // 10) :])


def p_of(record: Record) -> float:
    """p of the mask term of a training."""
    config = record["config"]
    preset = load_preset(config.get("preset", "default")).settings
    return float(config["settings"].get("objective.p", preset.get("objective.p", 0.0)))


def clear(e: Evidence, ours: float, theirs: float) -> int:
    """1 where `ours` leads `theirs` by more than the 95 % noise of two shares (per cent) of as many
    pictures, -1 where it trails by more, else 0. Seeds ask the same pictures, so they do not count;
    that methods do too makes it cautious."""
    parts = [mean / 100 * (1 - mean / 100) / e.spec["pictures"] for mean in (ours, theirs)]
    gap, noise = ours - theirs, 100 * 1.96 * math.sqrt(sum(parts))
    return (gap > noise) - (gap < -noise)


def verdict(leads: Sequence[int]) -> str:
    """Of a claim to lead all of them: seen where every lead is clear, not seen where one clearly
    trails, partly where some are level."""
    return SEEN if min(leads) > 0 else NOT_SEEN if min(leads) < 0 else PARTLY


def over_random(e: Evidence, kind: str) -> dict[str, list[float]]:
    """Points above random at each keep, of each system that ran."""
    chance = e.peer("random")
    out = {}
    for group in FULL_LENGTH:
        ran = e.system(group)
        if ran and chance:
            out[group] = [
                (exact(ran, kind, k) or 0.0) - (exact(chance, kind, k) or 0.0)
                for k in e.spec["keeps"]
            ]
    return out


def listed(points: Mapping[str, Sequence[float]]) -> str:
    """Names with their numbers, signed."""
    return "; ".join(
        f"{NAMES.get(name, name)} {' '.join(f'{value:+.0f}' for value in values)}"
        for name, values in points.items()
    )


def better_on_text(e: Evidence) -> Said:
    """The selector reads more than random tokens do, at every ratio."""
    points = over_random(e, e.text)
    if not points:
        return NOT_RUN, ""
    chance = [exact(e.peer("random"), e.text, keep) or 0.0 for keep in e.spec["keeps"]]
    leads = [clear(e, base + gap, base) for gaps in points.values()
             for gap, base in zip(gaps, chance, strict=True)]  # fmt: skip
    return verdict(leads), f"points over random at {_keeps(e)}: {listed(points)}"


def no_matter_on_calm(e: Evidence) -> Said:
    """On general pictures random tokens do as well."""
    points = over_random(e, e.calm)
    if not points:
        return NOT_RUN, ""
    most = max(max(values) for values in points.values())
    return (SEEN if most < 3 else PARTLY), f"points over random at {_keeps(e)}: {listed(points)}"


def half_is_enough(e: Evidence) -> Said:
    """Half of the tokens read as well as all of them."""
    full, half = e.peer("full"), max(e.spec["keeps"])
    lost = {
        group: [(exact(ran, e.text, half) or 0.0) - (exact(full, e.text, half) or 0.0)]
        for group in FULL_LENGTH
        if full and (ran := e.system(group))
    }
    if not lost:
        return NOT_RUN, ""
    worst, best = min(v[0] for v in lost.values()), max(v[0] for v in lost.values())
    state = SEEN if worst > -2 else PARTLY if best > -2 else NOT_SEEN
    return state, f"points from all tokens at {half:g}: {listed(lost)}"


def settles_at_p(e: Evidence) -> Said:
    """The mask's share falls to p and stays about there, while the reconstruction goes on."""
    told, right = [], []
    for group in FULL_LENGTH:
        for record in e.system(group)[:1]:
            first, end = record["curve"][0]["reconstruction"], last(record, "reconstruction")
            p = p_of(record)
            right.append(abs(last(record) - p) < 0.05 and end < first)
            told.append(f"{NAMES[group]}: {last(record):.2f} kept for p = {p:g}, "
                        f"error {end / first:.0%} of the first")  # fmt: skip
    if not told:
        return NOT_RUN, ""
    state = SEEN if all(right) else PARTLY if any(right) else NOT_SEEN
    return state, "; ".join(told)


def gumbel_collapses(e: Evidence) -> Said:
    """With Gumbel noise the plain mask term ends at no tokens."""
    names = [n for n in e.spec["groups"]["objective"]["variants"] if n.startswith("plain, gumbel")]
    return _kept(e, names, lambda share: share < 0.02)


def straight_through_is_stable(e: Evidence) -> Said:
    """A plain straight-through estimator bears the plain mask term."""
    every = e.spec["groups"]["objective"]["variants"]
    return _kept(e, [n for n in every if n.startswith("plain, straight")], lambda s: s > 0.02)


def _kept(e: Evidence, names: Sequence[str], good: Callable[[float], bool]) -> Said:
    ends = {name: [last(r) for r in ran] for name in names if (ran := e.runs("objective", name))}
    if not ends:
        return NOT_RUN, ""
    hits = [good(value) for values in ends.values() for value in values]
    state = SEEN if all(hits) else PARTLY if any(hits) else NOT_SEEN
    told = "; ".join(
        f"{name}: {', '.join(f'{v:.2f}' for v in values)}" for name, values in ends.items()
    )
    return state, f"share kept at the end, by seed: {told}"


def gumbel_reads_best(e: Evidence) -> Said:
    """At few tokens Gumbel with the two-sided term reads more than straight-through does."""
    keep = min(e.spec["keeps"])
    means = e.by_variant("objective", e.text, keep)
    wanted = "two-sided, gumbel"
    rivals = {n: m for n, m in means.items() if "straight-through" in n and "max" not in n}
    if wanted not in means or not rivals:
        return NOT_RUN, ""
    state = verdict([clear(e, means[wanted], mean) for mean in rivals.values()])
    return state, f"{e.text}, %, at {keep:g}: {_ranked({wanted: means[wanted], **rivals})}"


def four_layers(e: Evidence) -> Said:
    """Of 1 to 8 layers, four are best."""
    return _best(e, "depth", "4")


def hundred_epochs(e: Evidence) -> Said:
    """The longest training is best where few tokens are kept."""
    return _best(e, "epochs", "100")


def stable_masks(e: Evidence) -> Said:
    """Crops of 5 % and brightness from .8 to 1.2 hardly change what is kept."""
    rows = [row for record in e.stability if record["config"]["method"] == "selector"
            for row in record["rows"]]  # fmt: skip
    views = [view for view in dict.fromkeys(row["view"] for row in rows) if view != "as it was"]
    if not views:
        return NOT_RUN, ""
    same = {v: statistics.fmean(100 * r["overlap"] for r in rows if r["view"] == v) for v in views}
    state = SEEN if min(same.values()) >= 80 else PARTLY if max(same.values()) >= 80 else NOT_SEEN
    told = ", ".join(f"{view} {mean:.0f}" for view, mean in same.items())
    return state, f"kept both times, of what is kept at all, %, mean of kinds and keeps: {told}"


def _best(e: Evidence, group: str, wanted: str) -> Said:
    keep = min(e.spec["keeps"])
    means = e.by_variant(group, e.text, keep)
    if wanted not in means or len(means) < 2:
        return NOT_RUN, ""
    state = verdict([clear(e, means[wanted], m) for name, m in means.items() if name != wanted])
    return state, f"{e.text}, %, at {keep:g}: {_ranked(means)}"


def _ranked(means: Mapping[str, float]) -> str:
    order = sorted(means.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {mean:.1f}" for name, mean in order)


def _keeps(e: Evidence) -> str:
    return " ".join(f"{keep:g}" for keep in e.spec["keeps"])


CLAIMS: tuple[tuple[str, str, Callable[[Evidence], Said]], ...] = (
    ("both", "On text the trained selector beats random tokens at every ratio", better_on_text),
    ("both", "Half of the tokens can go with hardly a loss", half_is_enough),
    ("first", "On general pictures random tokens do as well", no_matter_on_calm),
    ("both", "The share kept falls to p and stays about there; reconstruction goes on falling",
     settles_at_p),
    ("follow-up", "Gumbel with the plain mask term collapses to no tokens", gumbel_collapses),
    ("follow-up", "A plain straight-through estimator bears the plain term",
     straight_through_is_stable),
    ("follow-up", "Gumbel with the two-sided term reads best at few tokens", gumbel_reads_best),
    ("follow-up", "Four selector layers are best of 1 to 8", four_layers),
    ("follow-up", "The longest training, 100 epochs, is best at few tokens", hundred_epochs),
    ("follow-up", "The mask bears crops of 5 % and brightness from .8 to 1.2", stable_masks),
)  # fmt: skip
