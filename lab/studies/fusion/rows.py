"""The rows of the page of selection and fusion: which arms, and what is done to their tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lab.report.board import Board, Place
from tokensieve.evaluate.stats import Scores

PANELS = {  # by column: (kind, topic) of what it is the mean of
    "pages": [("plain", "text")],
    "cluttered": [("cluttered", "text")],
    "mixed": [("mixed", "text")],
    "where": [("plain", "place"), ("cluttered", "place"), ("mixed", "place")],
    "scenes": [("scene", "scene")],
    "panel": [("mixed", "panel")],
}


KEEPERS = {"selected": "selector", "random": "random"}  # of arms that choose in training


@dataclass(frozen=True)
class Row:
    """A trained arm, and what is done to its tokens when it answers: a variant at a share."""

    arm: str
    variant: str = "full"
    keep: float = 1.0

    @property
    def key(self) -> str:
        """Its name where times are kept."""
        return f"{self.arm}/{self.variant}@{self.keep:g}"

    @property
    def label(self) -> str:
        """Its name in a table; an arm of kept tokens is handed them by its own keeper."""
        if self.variant == "full" or KEEPERS.get(self.arm) == self.variant:
            return self.arm
        if self.variant == "no-image":
            return "no image"
        return f"{self.arm}, then {self.variant}"


KEEPS = (0.5, 0.25, 0.125, 0.0625)
GRID = ["release-k2-e1", "release-k2-e2", "release-k4-e4", "release-k4-e8", "release-k8-e16",
        "release-k8-e32", "release-k4-e2", "release-k4-e1"]  # fmt: skip
PLUGGED = [
    "selector-embeds",
    "selector",
    "divprune",
    "random",
    "stride",
    "avgpool",
    "token-concat",
    "downsample",
]
ON_FUSED = ["fused-selector", "divprune", "stride", "random"]
TABLES: list[tuple[str, str, list[Row]]] = [
    (
        "What each part brings",
        "`mlp` is LLaVA's projector on every token; `mbtf` reads all encoder blocks, `stf` fuses "
        "2 x 2 tokens, `mbtf-stf` does both (table 3 of the paper). `mbtf`, and what is called "
        "release, in the released code's form.",
        [
            *map(Row, ("mlp", "mbtf", "stf", "mbtf-stf", "release-k2-e1", "release-mbtf-stf")),
            Row("mlp", "no-image"),
        ],
    ),
    (
        "Ways to bring 2 x 2 tokens together",
        "The mean, the channels side by side, and fusion in the paper's form (`stf`); "
        "`release-k2-e1` is `stf` in the released code's form (table 5 of the paper).",
        [*map(Row, ("avgpool", "concat", "stf", "release-k2-e1"))],
    ),
    (
        "Kernel and fused tokens",
        "k x k tokens become E (table 4 of the paper, whose (1, 1) is LLaVA's projector), in the "
        "released code's form, whose parameters do not grow with the fourth power of k, and "
        "without multi-block fusion. Below the paper's grid: 32 and 16 tokens.",
        [Row("mlp"), *map(Row, GRID)],
    ),
    (
        "A quarter of the tokens: selection against fusion",
        "Trained with 64 tokens: the fusing arms (`-long` for twice the steps); `selected`, "
        "whose LLM was trained on the 64 that the selector keeps; `random`, on 64 at random. Not "
        "trained for it: methods plugged into `mlp`, whose LLM never saw fewer than all tokens; "
        "`selector-embeds` was trained on what that LLM reads, as nano's own, `selector` on the "
        "encoder's features.",
        [
            *map(Row, ("stf", "release-k2-e1", "release-k2-e1-long", "release-mbtf-stf")),
            *map(Row, ("concat", "avgpool")),
            Row("selected", "selector", 0.25),
            Row("random", "random", 0.25),
            *[Row("mlp", name, 0.25) for name in PLUGGED],
        ],
    ),
    (
        "An eighth: both, one after the other",
        "32 tokens. `stf, then X` drops half of the 64 fused tokens; `fused-selector` was "
        "trained on them, the LLM was not trained for it. `selected` was trained with 64.",
        [
            *[Row("stf", name, 0.5) for name in ON_FUSED],
            Row("release-k4-e2"),
            Row("selected", "selector", 0.125),
            *[Row("mlp", name, 0.125) for name in PLUGGED],
        ],
    ),
    (
        "A sixteenth: both, one after the other",
        "16 tokens; `selected` was trained with 64.",
        [
            *[Row("stf", name, 0.25) for name in ON_FUSED],
            Row("release-k4-e1"),
            Row("selected", "selector", 0.0625),
            *[
                Row("mlp", name, 0.0625)
                for name in ("selector-embeds", "selector", "divprune", "random")
            ],
        ],
    ),
]
PAIRS = [
    (Row("stf"), Row("mlp")),
    (Row("mbtf-stf"), Row("stf")),
    (Row("release-mbtf-stf"), Row("release-k2-e1")),
    (Row("stf"), Row("concat")),
    (Row("stf"), Row("avgpool")),
    (Row("stf"), Row("mlp", "selector-embeds", 0.25)),
    (Row("stf"), Row("selected", "selector", 0.25)),
    (Row("concat"), Row("selected", "selector", 0.25)),
    (Row("selected", "selector", 0.25), Row("mlp", "selector", 0.25)),
    (Row("selected", "selector", 0.25), Row("mlp")),
    (Row("stf", "fused-selector", 0.5), Row("mlp", "selector-embeds", 0.125)),
    (Row("stf", "fused-selector", 0.25), Row("mlp", "selector-embeds", 0.0625)),
    (Row("stf", "divprune", 0.25), Row("mlp", "divprune", 0.0625)),
    (Row("stf", "fused-selector", 0.5), Row("release-k4-e2")),
]


def place(row: Row, kind: str, topic: str) -> Place:
    """Where the scores of a row stand."""
    return Place(row.arm, row.variant, kind, topic, row.keep)


def hits_of(board: Board, row: Row, panel: str) -> list[Scores]:
    """Scores by seed of a column, its parts one behind the other; empty where not run."""
    parts = [board.hits(place(row, kind, topic)) for kind, topic in PANELS[panel]]
    if not all(parts):
        return []
    seeds = min(map(len, parts))
    return [np.concatenate([part[seed] for part in parts]) for seed in range(seeds)]
