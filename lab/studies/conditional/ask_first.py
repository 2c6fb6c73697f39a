"""Nano's language model taught prompts of the form question + image + question.

A causal language model can only be aware of the text at its visual tokens if the text comes first.
Starts from the embedded model; encoder frozen; one question a picture, since what the visual tokens
become now depends on it. The embedded model answers such prompts at once, but has no reason to use
the question in front; so in a share of the rows the question is hidden from the answer, which then
learns of it through the visual tokens alone.

B batch, F tokens of the question in front, V visual tokens shown, T text tokens behind them,
S = F + V + T.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lab import command
from lab.nano.features import load_examples
from lab.nano.lm import Reader, mean_of, shown_features, token_losses
from lab.nano.muon import Muon
from lab.nano.packing import Example, Packed, pack
from lab.nano.state import Log, learning_rate, load_state, save_state
from lab.nano.vocabulary import ANSWER, PAD, vocabulary
from tokensieve.folders import Kind, claimed, lies_in
from tokensieve.hf.models.nano import load_nano
from tokensieve.nn.pretrained import write_weights

RUN = Kind("the training of a reader of questions", lies_in("state/step.json"))


@dataclass(frozen=True)
class AskFirst:
    """Every number of this training.

    A phase is (steps, visual tokens shown, pictures a step); in the last one a share `fewer` of the
    steps shows a random number of tokens. `silent`: share of questions that do not stand in front,
    so that plain prompts are not forgotten. `hidden`: share of rows whose answer sees no question.
    """

    phases: tuple[tuple[int, int, int], ...] = ((700, 24, 32), (400, 72, 16), (600, 256, 12))
    lr: float = 1e-3
    matrix_rate: float = 1.5
    warmup: int = 50
    fewer: float = 0.3
    silent: float = 0.1
    hidden: float = 0.6

    @property
    def ends(self) -> list[int]:
        """The step each phase ends before."""
        return list(accumulate(steps for steps, _, _ in self.phases))


def in_front(batch: Packed, silent_B: Tensor) -> tuple[Tensor, Tensor]:
    """The question of each row as it stands before the picture, padded on the left.

    Ids and which of them are real, both (B, F); nothing real where `silent_B`.
    """
    table = vocabulary()
    found = [ids.tolist() for ids in batch.ids]
    fronts = [ids[: ids.index(table[ANSWER])] for ids in found]
    longest = max(map(len, fronts))
    ids_BF = torch.tensor([[table[PAD]] * (longest - len(ids)) + ids for ids in fronts])
    sizes = torch.tensor([len(ids) for ids in fronts])
    real_BF = torch.arange(longest) >= longest - sizes[:, None]
    return ids_BF, real_BF & ~silent_B[:, None]


def visible(real_BF: Tensor, batch: Packed, hidden_B: Tensor) -> Tensor:
    """Who may look at whom, (B, 1, S, S): back at what is real.

    Where `hidden_B`, the answer and its marker see neither the question in front nor the one
    behind the picture.
    """
    F_, V = real_BF.shape[1], batch.kept.shape[1]
    asks_BT = (batch.ids == vocabulary()[ANSWER]).cumsum(1) == 0
    no_BV = torch.zeros_like(batch.kept, dtype=torch.bool)
    real_BS = torch.cat([real_BF, ~no_BV, batch.segment >= 0], 1)
    question_BS = torch.cat([real_BF, no_BV, asks_BT], 1)
    answer_BS = torch.cat([torch.zeros_like(real_BF), no_BV, ~asks_BT], 1)
    S = F_ + V + batch.ids.shape[1]
    seen = torch.ones(S, S, dtype=torch.bool).tril() & real_BS[:, None]
    blocked = answer_BS[:, :, None] & question_BS[:, None] & hidden_B[:, None, None]
    seen = (seen & ~blocked) | torch.eye(S, dtype=torch.bool)  # so that no row is empty
    return seen[:, None]


def logits_of(
    reader: Reader, shown_BVC: Tensor, batch: Packed, silent_B: Tensor, hidden_B: Tensor
) -> Tensor:
    """Logits (B, T, vocabulary) of the text behind the picture."""
    front_BF, real_BF = in_front(batch, silent_B)
    embed = reader.language_model.get_input_embeddings()
    length = real_BF.sum(1, keepdim=True)
    behind = torch.cat([batch.places, batch.start[:, None] + batch.offset], 1) + length
    before = (real_BF.cumsum(1) - 1).clamp(min=0)
    visual = reader.projector(shown_BVC)
    out = reader.language_model(
        inputs_embeds=torch.cat([embed(front_BF), visual, embed(batch.ids)], 1),
        attention_mask=visible(real_BF, batch, hidden_B),
        position_ids=torch.cat([before, behind], 1),
        use_cache=False,
    )
    logits: Tensor = reader.lm_head(out.last_hidden_state[:, -batch.ids.shape[1] :])
    return logits


def draw(
    recipe: AskFirst, step: int, rng: np.random.Generator, examples: Sequence[Example]
) -> tuple[Packed, Tensor, Tensor]:
    """The batch of one step, one question a picture; which are silent, which are hidden."""
    number = int(np.searchsorted(recipe.ends, step, side="right"))
    _, tokens, size = recipe.phases[number]
    if number + 1 == len(recipe.phases) and rng.random() < recipe.fewer:
        tokens = int(rng.integers(20, 224))
    picked = [examples[i] for i in rng.integers(0, len(examples), size)]
    batch = pack(rng, picked, tokens, 1, 0.0, 0.0)
    chance_B = torch.from_numpy(rng.random(size))
    return batch, chance_B < recipe.silent, chance_B > 1 - recipe.hidden


def train(recipe: AskFirst, data: Path, out: Path, shards: int, seed: int = 0) -> Reader:
    """Fine-tune on the first `shards` shards in `data`; resumes from `out`/state."""
    torch.manual_seed(seed)
    model, _ = load_nano()
    reader = Reader(model)  # type: ignore[arg-type]
    reader.train()
    optimiser, steps = Muon(reader, recipe.matrix_rate), recipe.ends[-1]
    step, log = load_state(out / "state", reader, optimiser), Log(out / "ask-first.jsonl")
    features, examples = load_examples(data, [("train", number) for number in range(shards)])
    while step < steps:
        rng = np.random.default_rng((seed, step))
        batch, silent_B, hidden_B = draw(recipe, step, rng, examples)
        optimiser.set_rate(learning_rate(step, steps, recipe.warmup, recipe.lr))
        shown = shown_features(features, batch)
        logits = logits_of(reader, shown, batch, silent_B, hidden_B)
        each, answered = token_losses(logits, batch), batch.weights == 1
        loss = mean_of(each, answered)
        optimiser.descend(reader, loss)
        step += 1
        if step % 20 == 0:
            of_hidden = mean_of(each[hidden_B], answered[hidden_B])
            tokens = batch.kept.shape[1]
            log.write(step=step, tokens=tokens, answer=loss.item(), hidden=of_hidden.item())
        if step % 100 == 0 or step == steps:
            save_state(out / "state", reader, optimiser, step)
    return reader


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: train and write projector, language model and output layer in fp16."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of `make nano`: pool, ...")
    parser.add_argument("--out", type=Path, required=True, help="state, log, reader.safetensors")
    parser.add_argument("--shards", type=int, default=24, help="shards of the pool to use")
    options = command.parse(parser, arguments)
    with claimed(options.out, RUN):
        reader = train(AskFirst(), options.data, options.out, options.shards)
        tensors = {name: value.half().contiguous() for name, value in reader.state_dict().items()}
        write_weights(options.out / "reader.safetensors", tensors)


if __name__ == "__main__":
    command.run(main, "checkpoint")
