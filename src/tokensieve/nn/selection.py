"""A selector and its rule as one module of tensors, that a graph of another engine can be made of.

B crops, L tokens of each, C width, K tokens kept.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tokensieve.errors import UnsupportedError
from tokensieve.functional.worth import ALIKE, Crowd
from tokensieve.nn.selector import Selector
from tokensieve.types import Grid

_OPEN = 1.0  # a token beside a chosen one, by which its word can go on


class Selection(nn.Module):
    """Tokens to the indices that stay, by a selector's scores and its rule; of any number of crops
    and tokens.

    The same choice as `tokensieve.nn.ranking.choose` of crops of one length, all of whose tokens
    are real: there the fast way on each device, here one loop without Python or NumPy in it.

    Raises `UnsupportedError` for weights whose choice is no such graph.
    """

    def __init__(self, selector: Selector) -> None:
        super().__init__()
        config = selector.config
        if config.rule == "gated":
            raise UnsupportedError(
                "Expected weights whose rule is 'top' or 'diverse'. Got 'gated', which goes crop "
                "by crop. Pass rule='diverse' or rule='top'."
            )
        self.selector = selector
        self.diverse = config.rule == "diverse"
        self.crowd = Crowd(config.crowd, config.radius, config.words)

    def forward(
        self, tokens: Float[Tensor, "B L C"], count: Int[Tensor, ""], columns: Int[Tensor, ""]
    ) -> tuple[Int[Tensor, "B K"], Float[Tensor, "B L"]]:
        """The indices that stay of each crop, rising, and the score of every token.

        count: how many stay, from 1; where there are fewer, all. columns: tokens in a row of the
        crops' grid, by which words are known; 1: they have no grid.
        """
        scores_BL = self._scores(tokens, None)
        taken_BL = self._taken(tokens, scores_BL, count, columns)
        return taken_BL.nonzero()[:, 1].reshape(tokens.shape[0], -1), scores_BL

    def _scores(self, tokens_BLC: Tensor, grid: Grid | None) -> Tensor:
        logits_BL2: Tensor = self.selector(tokens_BLC, None, grid)
        return logits_BL2[..., 1] - logits_BL2[..., 0]

    def _taken(
        self, tokens_BLC: Float[Tensor, "B L C"], scores_BL: Float[Tensor, "B L"],
        count: Int[Tensor, ""], columns: Int[Tensor, ""],
    ) -> Bool[Tensor, "B L"]:  # fmt: skip
        """One token of each crop a step: see `tokensieve.functional.worth`."""
        B, L, _ = tokens_BLC.shape
        diverse, words = self.diverse, self.diverse and self.crowd.words > 0
        free_BL, patience_BL, cosine_BLL = scores_BL, scores_BL, scores_BL
        if diverse:
            free_BL, patience_BL, cosine_BLL = self._compared(tokens_BLC, scores_BL)
        place_L = torch.arange(L, device=tokens_BLC.device)
        column_L = place_L % columns.clamp_min(1)
        count = count.clamp(1, L)

        def going(step: Tensor, free_BL: Tensor, near_BL: Tensor, open_BL: Tensor) -> Tensor:
            return step < count

        def take(
            step: Tensor, free_BL: Tensor, near_BL: Tensor, open_BL: Tensor
        ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            now_BL = free_BL + near_BL
            worth_B1, pick_B1 = now_BL.max(-1, keepdim=True)
            opened_BL, later_BL = open_BL.clone(), near_BL.clone()
            if words:
                value_B1, on_B1 = torch.where(open_BL == _OPEN, now_BL, -torch.inf).max(
                    -1, keepdim=True
                )
                worth_on_B1 = value_B1 + patience_BL.gather(1, pick_B1)
                waits_B1 = (open_BL.gather(1, pick_B1) != _OPEN) & (worth_on_B1 > worth_B1)
                pick_B1 = torch.where(waits_B1, on_B1, pick_B1)
                right_BL = (place_L == pick_B1 + 1) & (column_L > 0)
                left_BL = (place_L == pick_B1 - 1) & (column_L < columns - 1)
                opened_BL = torch.where(right_BL | left_BL, _OPEN, open_BL)
            if diverse:
                row_BL = cosine_BLL.gather(1, pick_B1[..., None].expand(B, 1, L))[:, 0]
                far_BL = (1 - row_BL).clamp_min(ALIKE).log()
                later_BL = torch.where(step > 0, torch.minimum(near_BL, far_BL), far_BL)
            left_over_BL = torch.where(place_L == pick_B1, -torch.inf, free_BL)
            return step + 1, left_over_BL, later_BL, opened_BL

        start = torch.zeros((), dtype=torch.long, device=tokens_BLC.device)
        none_BL, closed_BL = torch.zeros_like(scores_BL), torch.zeros_like(scores_BL)  # no aliases
        state = (start, free_BL, none_BL, closed_BL)
        _, left_BL, _, _ = torch.while_loop(going, take, state)  # type: ignore[no-untyped-call]
        taken_BL: Tensor = left_BL == -torch.inf
        return taken_BL

    def _compared(
        self, tokens_BLC: Float[Tensor, "B L C"], scores_BL: Float[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "B L"], Float[Tensor, "B L"], Float[Tensor, "B L L"]]:
        """Logarithms of the weights, logarithms of the patience, and the cosines."""
        radius = self.crowd.radius
        even_BLC = nn.functional.normalize(tokens_BLC / self.selector.std, dim=-1, eps=1e-12)
        cosine_BLL = even_BLC @ even_BLC.mT
        alike_BLL = (cosine_BLL - (1 - radius)).clamp(0.0, radius)
        crowd_BL = (alike_BLL.sum(-1) / radius).clamp_min(1.0)
        free_BL = self.selector.config.trust * scores_BL + self.crowd.power * crowd_BL.log()
        return free_BL, (self.crowd.words / crowd_BL).log1p(), cosine_BLL


class FixedSelection(Selection):
    """The same for one crop of a given grid and number of tokens kept: every shape is known.

    Raises `UnsupportedError` as `Selection`.
    """

    def __init__(self, selector: Selector, grid: Grid, count: int) -> None:
        super().__init__(selector)
        self.grid, self.count = grid, count

    def forward(  # type: ignore[override]
        self, tokens: Float[Tensor, "1 L C"]
    ) -> tuple[Int[Tensor, "1 K"], Float[Tensor, "1 L"]]:
        """The indices that stay, rising, and the score of every token."""
        scores_BL = self._scores(tokens, self.grid)
        count, columns = torch.tensor(self.count), torch.tensor(self.grid[1])
        taken_BL = self._taken(tokens, scores_BL, count, columns)
        L = tokens.shape[1]
        falling_L = torch.arange(L, 0, -1, device=tokens.device)  # `nonzero` has no known shape
        found_BK = torch.where(taken_BL, falling_L, 0).topk(self.count).values
        return L - found_BK, scores_BL
