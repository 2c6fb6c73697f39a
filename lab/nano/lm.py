"""Stage 3: projector and language model on cached features, the encoder frozen.

B batch, V visual tokens shown, T text tokens, S = V + T, L = 256 patches, C encoder width,
D width of the language model.

Two of them: "lm" goes through a curriculum in visual tokens (few, more, all), so it has
seen shortened sequences; "control" always sees all of them. What leads it instead is a loss on
where it looks: at first some heads of one layer are told which tokens hold what is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, LlavaForConditionalGeneration

from lab.nano.features import load_examples
from lab.nano.llava import Shape, llava
from lab.nano.muon import Muon
from lab.nano.packing import (
    PATCHES,
    Example,
    Packed,
    attention_mask,
    pack,
    position_ids,
)
from lab.nano.parallel import rank_and_world
from lab.nano.recipe import LmRecipe, Recipe
from lab.nano.state import Log, learning_rate, load_state, save_state
from lab.nano.vocabulary import vocabulary


def build_llava(recipe: LmRecipe, vision: CLIPVisionConfig) -> LlavaForConditionalGeneration:
    """The untrained model around an encoder of that shape."""
    shape = Shape(recipe.width, recipe.hidden, recipe.layers, recipe.heads, answer=8)
    return llava(vision, shape, vocabulary())


class Reader(nn.Module):
    """The trained part: projector, language model and output layer of a Llava model."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.projector = model.model.multi_modal_projector
        self.language_model = model.model.language_model
        self.lm_head = model.lm_head

    def forward(self, features_BVC: Tensor, batch: Packed) -> Tensor:
        """Logits (B, T, vocabulary) of the text tokens of `batch`."""
        return self.watched(features_BVC, batch)[0]

    def watched(
        self, features_BVC: Tensor, batch: Packed, layer: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits as above and what the text tokens look at in `layer`: (B, heads, T, V).

        Attention is materialised only where a layer is named. Of more tokens than the batch keeps,
        those it names are taken behind the projector.
        """
        visual_BVD = self.projector(features_BVC)
        if visual_BVD.shape[1] != batch.kept.shape[1]:
            at = batch.kept[..., None].expand(-1, -1, visual_BVD.shape[-1])
            visual_BVD = visual_BVD.gather(1, at)
        text_BTD = self.language_model.get_input_embeddings()(batch.ids)
        watch = layer is not None
        self.language_model.set_attn_implementation("eager" if watch else "sdpa")
        seen = attention_mask(batch)
        out = self.language_model(
            inputs_embeds=torch.cat([visual_BVD, text_BTD], dim=1),
            attention_mask=torch.zeros(seen.shape).masked_fill(~seen, -1e9) if watch else seen,
            position_ids=position_ids(batch),
            use_cache=False,
            output_attentions=watch,
        )
        V = batch.kept.shape[1]
        looks = out.attentions[layer][:, :, V:, :V] if watch else None
        return self.lm_head(out.last_hidden_state[:, V:]), looks


def shown_features(features: NDArray[np.float16], batch: Packed) -> Tensor:
    """The features of the tokens that a batch shows, (B, V, C) float32."""
    rows = torch.from_numpy(features[batch.rows]).float()
    return rows.gather(1, batch.kept[..., None].expand(-1, -1, rows.shape[-1]))


def token_losses(logits_BTN: Tensor, batch: Packed) -> Tensor:
    """Cross-entropy of every text token, (B, T); `batch.weights` are 1 on answers."""
    return F.cross_entropy(logits_BTN.transpose(1, 2), batch.targets, reduction="none")


def mean_of(each: Tensor, weights: Tensor) -> Tensor:
    """The mean of `each` by weight."""
    return (each * weights).sum() / weights.sum()


def look_loss(looks_BHTV: Tensor, batch: Packed) -> Tensor:
    """Minus the log of the attention that half of the heads pay to what an answer is read from."""
    half = looks_BHTV[:, : looks_BHTV.shape[1] // 2].mean(1)
    paid = (half * batch.source).sum(-1)[batch.source.any(-1)]
    return -(paid + 1e-6).log().mean()


Feed = Callable[[Generator, list[Example]], tuple[Tensor, Packed]]


def all_shown(features: NDArray[np.float16]) -> Feed:
    """Batches with every question and all patches."""

    def feed(rng: Generator, examples: list[Example]) -> tuple[Tensor, Packed]:
        batch = pack(rng, examples, PATCHES, 24, 0.0, renumber=0.0)
        return shown_features(features, batch), batch

    return feed


@torch.no_grad()
def evaluate(reader: Reader, examples: list[Example], feed: Feed) -> dict[str, float]:
    """Exact match by kind and topic.

    An answer counts when every token of it, the end included, is the most likely one
    given those before it: the same as greedy decoding.
    """
    reader.eval()
    rng, hits = np.random.default_rng(0), dict[str, list[bool]]()
    for start in range(0, len(examples), 10):
        group = examples[start : start + 10]
        chosen, batch = feed(rng, group)
        guesses = reader(chosen, batch).argmax(-1) == batch.targets
        for row, example in enumerate(group):
            numbers = batch.segment[row]
            for number in range(int(numbers.max()) + 1):
                mine = (numbers == number) & (batch.weights[row] == 1)
                ids = batch.ids[row][numbers == number].tolist()
                asked = next(a for a in example.asked if a.ids[: len(ids)] == ids)
                name = f"{example.kind}.{asked.topic}"
                hits.setdefault(name, []).append(bool(guesses[row][mine].all()))
    reader.train()
    return {name: float(np.mean(values)) for name, values in sorted(hits.items())}


def draw(
    rng: Generator, examples: list[Example], phase: tuple[int, int, int], control: bool, last: bool
) -> tuple[list[Example], int]:
    """The examples of one step and how many of their tokens are shown.

    In the last phase of "lm" three steps of ten still show a random number of tokens.
    """
    _, tokens, size = phase
    size = max(1, size // rank_and_world()[1])
    if not control and last and rng.random() < 0.3:
        tokens = int(rng.integers(20, 224))
    picked = rng.integers(0, len(examples), size)
    return [examples[i] for i in picked], PATCHES if control else tokens


def train_reader(recipe: Recipe, out: Path, log: Log, control: bool) -> None:
    """Train (or go on training) "lm" or "control"; state in `out/<name>-state`."""
    name, part = ("control" if control else "lm"), recipe.lm
    rank, _ = rank_and_world()
    torch.manual_seed(recipe.seed)
    vision = CLIPVisionConfig.from_pretrained(out / "encoder", trust_remote_code=False)
    reader = Reader(build_llava(part, vision))
    optimiser = Muon(reader, part.matrix_rate)
    step = load_state(out / f"{name}-state", reader, optimiser)
    train = [("train", number) for number in range(recipe.train_shards)]
    features, examples = load_examples(out, train)
    val_features, val_examples = load_examples(out, [("val", n) for n in range(recipe.val_shards)])
    phases = part.control_phases if control else part.phases
    ends = np.cumsum([phase[0] for phase in phases])
    while step < ends[-1]:
        rng = np.random.default_rng((recipe.seed, step, rank))
        number = int(np.searchsorted(ends, step, side="right"))
        chosen, tokens = draw(rng, examples, phases[number], control, number + 1 == len(phases))
        batch = pack(rng, chosen, tokens, part.questions, part.key_weight, part.renumber)
        rate = learning_rate(step, int(ends[-1]), part.warmup, part.lr)
        optimiser.set_rate(rate)
        guided = control and number == 0 and bool(batch.source.any())
        layer = part.guide_layer if guided else None
        logits, looks = reader.watched(shown_features(features, batch), batch, layer)
        each = token_losses(logits, batch)
        loss = mean_of(each, batch.weights)
        if looks is not None:
            loss = loss + part.guide * (1 - step / int(ends[0])) * look_loss(looks, batch)
        optimiser.descend(reader, loss)
        step += 1
        if rank != 0:
            continue
        if step % 50 == 0:
            answer = mean_of(each, batch.weights == 1).item()
            log.write(stage=name, step=step, tokens=tokens, lr=rate, answer=answer)
        if step % recipe.checkpoint_every == 0 or step == ends[-1]:
            save_state(out / f"{name}-state", reader, optimiser, step)
            sample = val_examples if step == ends[-1] else val_examples[:120]
            log.write(
                stage=f"{name}-val", step=step, **evaluate(reader, sample, all_shown(val_features))
            )
