"""The optimiser of the embedded model: orthogonal steps, one schedule, exact resume."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from lab.nano.muon import Muon, orthogonalised
from lab.nano.state import load_state, save_state


class Toy(nn.Module):
    """A wide and a tall layer, and a head that is no layer's matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Module()
        self.block.layers = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 6))
        self.head = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.block.layers(x))
        return out


def trained(steps: int, model: Toy, optimiser: Muon, first: int = 0) -> float:
    loss = torch.tensor(0.0)
    for step in range(first, first + steps):
        x = torch.randn(64, 6, generator=torch.Generator().manual_seed(step))
        loss = (model(x) - x.tanh()).square().mean()
        optimiser.set_rate(0.01)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return float(loss.detach())


def test_orthogonalised_evens_out_singular_values_and_keeps_their_directions() -> None:
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(3, 8, 20), full_matrices=False)
    given = u @ torch.diag_embed(torch.logspace(0, -1.5, 8).expand(3, 8)) @ v
    values = u.mT @ orthogonalised(given) @ v.mT
    diagonal = values.diagonal(dim1=-2, dim2=-1)
    assert ((diagonal > 0.5) & (diagonal < 1.3)).all()
    torch.testing.assert_close(values, torch.diag_embed(diagonal), atol=1e-3, rtol=0)


def test_layers_move_by_orthogonal_steps_and_the_rest_by_adam() -> None:
    torch.manual_seed(0)
    model = Toy()
    optimiser = Muon(model, factor=2.0, weight_decay=0.0)
    before = [p.detach().clone() for p in model.parameters()]
    trained(1, model, optimiser)
    wide, _, tall, _, head, _ = [p - b for p, b in zip(model.parameters(), before, strict=True)]
    for change in (wide, tall):  # 0.2 sqrt(16) 0.01 2, times singular values of about 1
        strength = torch.linalg.svdvals(change)
        assert ((strength > 0.008) & (strength < 0.024)).all()
    torch.testing.assert_close(head.abs(), torch.full_like(head, 0.01), rtol=0.01, atol=0)


def test_it_learns() -> None:
    torch.manual_seed(0)
    model = Toy()
    optimiser = Muon(model, factor=1.0)
    first = trained(1, model, optimiser)
    assert trained(300, model, optimiser, first=1) < 0.1 * first


def test_a_resumed_run_repeats_the_unbroken_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, again = Toy(), Toy()
    optimiser, other = Muon(model, factor=1.0), Muon(again, factor=1.0)
    trained(3, model, optimiser)
    save_state(tmp_path, model, optimiser, 3)
    trained(2, model, optimiser, first=3)
    assert load_state(tmp_path, again, other) == 3
    trained(2, again, other, first=3)
    for weight, repeated in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(weight, repeated, rtol=0, atol=0)
