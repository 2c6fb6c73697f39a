"""Stage 3: projector and Llama on cached features: `--features FOLDER --out FOLDER`; it resumes.

The curriculum is in visual tokens: a few with what is asked among them, then more, then all. The
next stage begins where the averaged weights answer enough of the val questions of this one; in the
last the rate falls to nothing. First on features of the truth, where no encoder's error holds up
the curriculum; then `--begin READER` goes on in the last stage on an encoder's features, seen
through the affine map that makes of them the truth. With `--as-it-is` READER's projector knows
these features already: it goes on as it is, with more questions about scenes, say.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlavaForConditionalGeneration

from lab import command
from lab.nano.llava import Shape, llava
from lab.nano.lm import Reader, mean_of, shown_features, token_losses
from lab.nano.muon import Muon
from lab.nano.packing import Packed
from lab.nano.state import Log
from lab.nano2 import features as cached
from lab.nano2.asking import VOCABULARY, Example, askable, pack
from lab.nano2.encoder import build_encoder
from lab.nano2.keep import Training, averaged_in
from lab.nano2.pages import page
from lab.nano2.truth import exchanged, read_as, truth_of

KEY_MARK = 0.5  # weight by which a key's letters are told in a batch that is only judged
BEGIN_PAGES = 400  # what a first projector is fitted to
FIT_RATE, FIT_ROWS = 2e-3, 2048


@dataclass(frozen=True)
class ReaderRecipe:
    """Shape and schedule; `stages` are visual tokens and pages a step."""

    width: int = 192
    layers: int = 4
    heads: int = 6
    seed: int = 0
    stages: tuple[tuple[int, int], ...] = (
        (16, 32),
        (32, 24),
        (64, 16),
        (128, 12),
        (288, 8),
        (576, 6),
    )
    questions: int = 10
    on: int = 4  # lines to read on, beside the questions
    key_weight: float = 0.2
    renumber: float = 0.1  # share of pages whose tokens count from 0, whatever is left out
    printed: float = 0.2  # of the truth's pages that keep their characters
    warmup: int = 100
    rate: float = 1.5e-3
    matrix_rate: float = 1.5
    average: float = 0.99
    enough: float = 0.8
    check_every: int = 200
    last: int = 4000  # steps of the last stage, of which
    falling: int = 2000  # are with a falling rate
    fit: int = 2500  # steps of the projector alone, from the truth to an encoder's features
    scenes: float = 0.0  # share of the pages that are drawn from those with scenes alone


def build_llava(vision: CLIPVisionConfig, recipe: ReaderRecipe) -> LlavaForConditionalGeneration:
    """The untrained model around an encoder of that shape."""
    hidden = recipe.width * 11 // 4
    return llava(
        vision, Shape(recipe.width, hidden, recipe.layers, recipe.heads, answer=24), VOCABULARY
    )


@torch.no_grad()
def fitted(reader: Reader, sample_NC: Tensor) -> None:
    """Begin with a projector that sees standardised features, at the size of the characters'
    embeddings."""
    first, second = reader.projector.linear_1, reader.projector.linear_2
    spread = sample_NC.std(0).clamp_min(1e-3)
    nn.init.normal_(first.weight, std=first.in_features**-0.5)
    first.weight.div_(spread)
    first.bias.copy_(-(first.weight @ sample_NC.mean(0)))
    nn.init.normal_(second.weight, std=second.in_features**-0.5)
    nn.init.normal_(reader.language_model.get_input_embeddings().weight, std=0.5)


@torch.no_grad()
def exact(
    reader: Reader,
    features: NDArray[np.float16],
    examples: list[Example],
    tokens: int,
    recipe: ReaderRecipe,
) -> dict[str, float]:
    """Share of questions of which every token of the answer is the most likely one: those that
    characters answer ("text"), and the others as far as any are asked ("scene")."""
    rng, hits = np.random.default_rng(0), {"text": list[bool](), "scene": list[bool]()}
    some = [one for one in examples if askable(one, tokens)]
    for start in range(0, len(some), 20):
        batch = pack(rng, some[start : start + 20], tokens, recipe.questions, KEY_MARK, 0.0)
        right = reader(shown_features(features, batch), batch).argmax(-1) == batch.targets
        for row in range(len(batch.rows)):
            for number in range(int(batch.segment[row].max()) + 1):
                mine = (batch.segment[row] == number) & (batch.weights[row] == 1)
                named = bool((batch.weights[row][batch.segment[row] == number] == KEY_MARK).any())
                hits["text" if named else "scene"].append(bool(right[row][mine].all()))
    return {name: float(np.mean(values)) for name, values in hits.items() if values}


def rate_at(step: int, since: int | None, recipe: ReaderRecipe) -> float:
    """Up, level, and at the end of the last stage, begun at step `since`, down to nothing."""
    left = 1.0 if since is None else (since + recipe.last - step) / recipe.falling
    return recipe.rate * max(0.0, min(1.0, left, (step + 1) / recipe.warmup))


def read_through(
    reader: Reader, folder: Path, features_PLC: NDArray[np.float16], steps: int
) -> None:
    """Have the projector make of an encoder's features what it makes of the truth, on the first
    pages of train: the affine map of least squares first, then `steps` of descent for the rest."""
    level, width = cached.level_of(folder), features_PLC.shape[-1]
    truth = [truth_of(page(0, "train", k, level), width) for k in range(len(features_PLC))]
    given_NC, truth_NC = (
        torch.from_numpy(some.astype(np.float32)).flatten(0, 1)
        for some in (features_PLC, np.stack(truth))
    )
    with torch.no_grad():
        wanted_ND = reader.projector(truth_NC)
        weight_CC, bias_C = read_as(given_NC, truth_NC)
        first = reader.projector.linear_1
        first.bias.add_(first.weight @ bias_C)
        first.weight.copy_(first.weight @ weight_CC.T)
    size_N = truth_NC.square().sum(-1)
    often_N = torch.where(size_N > 1.5 * size_N.median(), 5.0, 1.0)  # text more than paper
    optimiser = torch.optim.Adam(reader.projector.parameters())
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = FIT_RATE * (1 - step / steps)
        rows = torch.multinomial(often_N, FIT_ROWS, replacement=True)
        error = (reader.projector(given_NC[rows]) - wanted_ND[rows]).square().mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()


def begun(recipe: ReaderRecipe, folder: Path, begin: Path | None) -> tuple[Reader, dict[str, Any]]:
    """A reader and the state of step 0: untrained, or with the weights of `begin` in the last
    stage."""
    features, _ = cached.load(folder, "train", BEGIN_PAGES)
    reader = Reader(build_llava(build_encoder(cached.encoder_of(folder)).config, recipe))
    at, last = 0, len(recipe.stages) - 1
    if begin is None:
        fitted(reader, torch.from_numpy(features.astype(np.float32)).flatten(0, 1))
    else:
        reader.load_state_dict(averaged_in(begin))
        if recipe.fit:
            read_through(reader, folder, features, recipe.fit)
        at = last
    since = 0 if at == last else None
    return reader, {"step": 0, "at": at, "since": since, "recipe": asdict(recipe)}


def train(
    recipe: ReaderRecipe, folder: Path, out: Path, until: int, begin: Path | None = None
) -> None:
    """Train to step `until`, or to the end of the last stage; the checkpoint is
    out/reader.safetensors. `begin` counts only where there is no checkpoint yet."""
    torch.manual_seed(recipe.seed)
    reader, state = begun(recipe, folder, begin)
    features, examples = cached.load(folder, "train")
    codes = cached.load_codes(folder, "train")
    val_features, val = cached.load(folder, "val")
    judged = copy.deepcopy(reader).eval()
    run = Training(out / "reader.safetensors", reader, Muon(reader, recipe.matrix_rate), state)
    log, recent = Log(out / "reader.jsonl"), list[float]()
    log.write(stage="begin", **run.state)
    while run.step < until and not done(run, recipe):
        tokens, _ = recipe.stages[run.state["at"]]
        shown, batch = draw(recipe, run, features, examples, codes)
        recent.append(one_step(run, shown, batch, recipe))
        if run.step % 25 == 0:
            log.write(stage="reader", step=run.step, tokens=tokens, loss=np.mean(recent))
            recent.clear()
        if run.step % recipe.check_every == 0:
            judged.load_state_dict(run.averaged)
            right = exact(judged, val_features, val[:100], tokens, recipe)
            log.write(stage="check", step=run.step, tokens=tokens, **right)
            if right["text"] > recipe.enough and run.state["at"] + 1 < len(recipe.stages):
                run.state["at"] += 1
                if run.state["at"] + 1 == len(recipe.stages):
                    run.state["since"] = run.step
        if run.step == until or done(run, recipe):
            run.save()
        run.save_in_time()


def done(run: Training, recipe: ReaderRecipe) -> bool:
    """Whether the last stage is at its end."""
    since = run.state["since"]
    return since is not None and run.step >= since + recipe.last


def draw(
    recipe: ReaderRecipe,
    run: Training,
    features: NDArray[np.float16],
    examples: list[Example],
    codes: NDArray[np.uint8] | None,
) -> tuple[Tensor, Packed]:
    """What the next step shows (B, V, C) and asks: it depends on seed, step and stage alone.

    Of the truth's pages without a scene the characters are exchanged, but for a share as printed.
    """
    tokens, size = recipe.stages[run.state["at"]]
    rng = np.random.default_rng((recipe.seed, run.step, run.state["at"]))
    some = [one for one in examples if askable(one, tokens)]
    drawn = [some[k] for k in rng.integers(0, len(some), (size,)).tolist()]
    if recipe.scenes:
        scenes = [one for one in some if not all(asked.needs for asked in one.asked)]
        for row in np.flatnonzero(rng.random(size) < recipe.scenes).tolist():
            drawn[row] = scenes[int(rng.integers(len(scenes)))]
    weight, anew = recipe.key_weight, recipe.renumber
    batch = pack(rng, drawn, tokens, recipe.questions, weight, anew, recipe.on)
    shown = shown_features(features, batch)
    if codes is None:
        return shown, batch
    words = [k for k, one in enumerate(drawn) if all(asked.needs for asked in one.asked)]
    rows = [k for k in words if rng.random() >= recipe.printed]
    kept = torch.from_numpy(codes[batch.rows]).gather(
        1, batch.kept[..., None].expand(-1, -1, codes.shape[-1])
    )
    return exchanged(rng, shown, kept, batch, rows)


def one_step(run: Training, shown_BVC: Tensor, batch: Packed, recipe: ReaderRecipe) -> float:
    """One step of the optimiser and of the average; the answers' loss."""
    each = token_losses(run.model(shown_BVC, batch), batch)
    rate = rate_at(run.step, run.state["since"], recipe)
    run.descend(mean_of(each, batch.weights), rate, recipe.average)
    return mean_of(each.detach(), batch.weights == 1).item()


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=Path, required=True, help="folder of stage 2")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoint and log")
    parser.add_argument("--begin", type=Path, help="a reader's checkpoint to go on from")
    parser.add_argument("--until", type=int, default=30_000, help="stop at this step")
    parser.add_argument("--as-it-is", action="store_true", help="--begin knows these features")
    parser.add_argument("--scenes", type=float, default=0.0, help="share of pages with scenes")
    parser.add_argument(
        "--last", type=int, default=ReaderRecipe.last, help="steps of the last stage"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = command.parse(parser, arguments)
    recipe = ReaderRecipe(
        seed=given.seed,
        scenes=given.scenes,
        last=given.last,
        fit=0 if given.as_it_is else ReaderRecipe.fit,
    )
    train(recipe, given.features, given.out, given.until, given.begin)


if __name__ == "__main__":
    command.run(main, "checkpoint")
