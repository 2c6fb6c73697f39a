"""AdamW whose hidden matrices take orthogonalised momentum steps (Muon).

Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the scale
that lets both share one learning rate follows Liu et al., "Muon is scalable for LLM training"
(2025). `torch.optim.Muon` computes in bfloat16, which on a CPU costs more than the step itself.
R, C: rows and columns of a matrix; M: matrices of one shape.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lab.nano.parallel import average_gradients

MOMENTUM, ROUNDS = 0.95, 5
QUINTIC = (3.4445, -4.7750, 2.0315)  # drives singular values into about 0.7..1.2


def orthogonalised(matrices_MRC: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly, by Newton-Schulz rounds; R <= C."""
    x: Tensor = matrices_MRC / (matrices_MRC.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = QUINTIC
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon(torch.optim.AdamW):
    """The layers' matrices by Muon, everything else by AdamW, under one schedule.

    `factor` multiplies the learning rate of the matrices: their steps bear a larger one.
    """

    def __init__(self, model: nn.Module, factor: float, weight_decay: float = 0.01) -> None:
        named = [(".layers." in name and p.ndim == 2, p) for name, p in model.named_parameters()]
        groups = [
            {"params": [p for hidden, p in named if hidden], "weight_decay": weight_decay},
            {"params": [p for hidden, p in named if not hidden], "weight_decay": 0.0},
        ]
        super().__init__(groups, betas=(0.9, 0.98))
        self.factor = factor

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next steps."""
        hidden, rest = self.param_groups
        hidden["lr"], rest["lr"] = rate * self.factor, rate

    def descend(self, model: nn.Module, loss: Tensor) -> None:
        """One step down `loss`, its gradients averaged over processes and no longer than 1."""
        self.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        average_gradients(model)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self.step()

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step; the gradients of the matrices are used up."""
        hidden = self.param_groups[0]
        by_side: dict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]] = {}
        for matrix in hidden["params"]:
            if matrix.grad is not None:
                step = flat(self._ahead(matrix, matrix.grad))
                by_side.setdefault(tuple(step.shape), []).append((matrix, step))
        for (_, longest), found in by_side.items():
            changes = orthogonalised(torch.stack([step for _, step in found]))
            changes *= 0.2 * longest**0.5
            for (matrix, _), change in zip(found, changes, strict=True):
                matrix.mul_(1 - hidden["lr"] * hidden["weight_decay"])
                flat(matrix).sub_(change, alpha=hidden["lr"])
                matrix.grad = None
        super().step()  # passes over parameters without a gradient

    def _ahead(self, matrix: nn.Parameter, grad: Tensor) -> Tensor:
        """Nesterov's momentum of `matrix`, (R, C)."""
        state = self.state[matrix]
        if not state:  # AdamW wants a count of steps in every state it loads
            state.update(step=torch.zeros(()), momentum=torch.zeros_like(matrix))
        momentum: Tensor = state["momentum"].lerp_(grad, 1 - MOMENTUM)
        return grad.lerp(momentum, MOMENTUM)


def flat(matrix_RC: Tensor) -> Tensor:
    """A view with no more rows than columns."""
    return matrix_RC if matrix_RC.shape[0] <= matrix_RC.shape[1] else matrix_RC.mT
