"""A search for the best point of a box by few, dear questions.

N points asked, M candidates, D numbers of a point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float64]
_CANDIDATES = 512
_WIDTH = 0.2  # of the kernel, as a share of a side of the box and of sqrt(D)
_NOISE = 1e-6


def bayesian_search(
    score: Callable[[tuple[float, ...]], float],
    bounds: Sequence[tuple[float, float]],
    evaluations: int,
    seed: int = 0,
) -> tuple[tuple[float, ...], float]:
    """The best of `evaluations` points by `score` (higher is better), and its score.

    The first third is spread at random. Then a Gaussian process (squared exponential kernel on
    scores scaled to unit variance) says of 512 drawn candidates, half of them near the best so far,
    where most improvement is expected, and that point is asked. The same points for a seed.
    """
    rng = np.random.default_rng(seed)
    low, high = np.array(bounds, dtype=float).T
    first = max(2, evaluations // 3)
    asked = rng.random((min(first, evaluations), len(bounds)))
    scores = [score(_point(row, low, high)) for row in asked]
    while len(scores) < evaluations:
        best = asked[int(np.argmax(scores))]
        near = best + rng.normal(0, 0.1, (_CANDIDATES // 2, len(bounds)))
        drawn = rng.random((_CANDIDATES - len(near), len(bounds)))
        candidates = np.concatenate([drawn, near.clip(0, 1)])
        gain = expected_improvement(asked, np.array(scores), candidates)
        asked = np.concatenate([asked, candidates[[int(gain.argmax())]]])
        scores.append(score(_point(asked[-1], low, high)))
    at = int(np.argmax(scores))
    return _point(asked[at], low, high), scores[at]


def expected_improvement(asked_ND: _Array, scores_N: _Array, candidates_MD: _Array) -> _Array:
    """(M,) By how much each candidate is expected to be better than the best point asked, in units
    of the scores' deviation."""
    spread = float(scores_N.std()) or 1.0
    told_N = (scores_N - scores_N.mean()) / spread
    kernel_NN = _kernel(asked_ND, asked_ND) + _NOISE * np.eye(len(asked_ND))
    across_MN = _kernel(candidates_MD, asked_ND)
    solved_NM = np.linalg.solve(kernel_NN, across_MN.T)
    mean_M = solved_NM.T @ told_N
    variance_M = (1 - (across_MN * solved_NM.T).sum(1)).clip(1e-12)
    deviation_M = np.sqrt(variance_M)
    z_M = (mean_M - told_N.max()) / deviation_M
    below_M = np.array([0.5 * (1 + math.erf(z / math.sqrt(2))) for z in z_M])
    density_M = np.exp(-0.5 * z_M**2) / math.sqrt(2 * math.pi)
    gain_M: _Array = deviation_M * (z_M * below_M + density_M)
    return gain_M


def _kernel(a_ND: _Array, b_MD: _Array) -> _Array:
    width = _WIDTH * math.sqrt(a_ND.shape[1])
    square_NM = ((a_ND[:, None] - b_MD[None]) ** 2).sum(-1)
    kernel_NM: _Array = np.exp(-0.5 * square_NM / width**2)
    return kernel_NM


def _point(unit: _Array, low: _Array, high: _Array) -> tuple[float, ...]:
    return tuple((low + unit * (high - low)).tolist())
