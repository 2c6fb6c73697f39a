"""A projector that is told the question: one token of each cell, by what is asked.

B pictures, C channels, L = H * W tokens, k kernel side, N = L / k^2 cells, D width of the LLM, h
heads, d channels of a head.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from tokensieve.errors import ConfigError
from tokensieve.nn.cells import as_map, unfold
from tokensieve.nn.fusion_config import check_divides

HEADS = 8  # at most; fewer where they would not divide the channels


class QuestionProjector(nn.Module):
    """QueCC [1]: the question is added to every token, a convolution makes one query of each k x k
    cell, and the query attends to the cell's own k^2 tokens; then LLaVA's two-layer MLP.

    Differs from the released code: keys and values are of the same block as queries (several
    blocks become one before, by multi-block fusion); there they are of four, side by side.

    [1] Inference Optimal VLMs Need Only One Visual Token but Larger Models, arXiv 2411.03312.
    """

    def __init__(self, width: int, out_width: int, kernel: int = 2) -> None:
        super().__init__()
        self.kernel = kernel
        self.heads = next(n for n in range(HEADS, 0, -1) if width % n == 0)
        self.question = nn.Sequential(nn.Linear(out_width, width), nn.LayerNorm(width))
        self.query, self.key, self.value = (_normed(width) for _ in range(3))
        self.gather = nn.Conv2d(width, width, kernel, stride=kernel, groups=width)
        self.attention = nn.ModuleDict(
            {name: nn.Linear(width, width) for name in ("query", "key", "value", "out")}
        )
        self.mlp = nn.Sequential(
            nn.Linear(width, out_width), nn.GELU(), nn.Linear(out_width, out_width)
        )

    def forward(
        self, tokens_BLC: Float[Tensor, "B L C"], grid: tuple[int, int],
        question_BD: Float[Tensor, "B D"] | None = None,
    ) -> Float[Tensor, "B N D"]:  # fmt: skip
        """Cells in reading order. question: the LLM's last hidden state of what is asked.

        Raises `ConfigError` without a question, and as `SpatialFusion`.
        """
        check_divides(self.kernel, grid)
        if question_BD is None:
            raise ConfigError(
                "Expected the question beside the tokens, for a projector that chooses by it. Got "
                "pictures alone. Give the model `input_ids` with them, or use another kind."
            )
        asked_BLC = tokens_BLC + self.question(question_BD.to(tokens_BLC.dtype))[:, None]
        query_BNC = self.gather(as_map(self.query(asked_BLC), grid)).flatten(2).mT
        projected: Tensor = self.mlp(self._attend(query_BNC, tokens_BLC, grid))
        return projected

    def _attend(self, query_BNC: Tensor, tokens_BLC: Tensor, grid: tuple[int, int]) -> Tensor:
        B, N, C = query_BNC.shape
        h, d = self.heads, C // self.heads
        query = self.attention["query"](query_BNC).reshape(B, N, h, 1, d)
        cells = (
            unfold(self.attention[name](made(tokens_BLC)), grid, self.kernel)
            for name, made in (("key", self.key), ("value", self.value))
        )
        keys, values = (of_cell.reshape(B, N, h, d, -1) for of_cell in cells)
        weights = (query @ keys / d**0.5).softmax(-1)
        found_BNC = (weights @ values.mT).reshape(B, N, C)
        out: Tensor = self.attention["out"](found_BNC)
        return out


def _normed(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width)
    )
