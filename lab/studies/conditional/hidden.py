"""Hidden states of nano's LLM at its visual tokens, behind a question: what "conditional" reads.

One feature store per decoder layer; that of layer 0 holds the embeddings, which no question reaches
(site "embeds"): what an unconditioned selector is trained on. Nothing behind the picture matters: a
causal model has not read it yet.

B pictures, F tokens of the question, L visual tokens, C encoder width, D width of the LLM.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from lab import command
from lab.nano.features import load_examples
from lab.nano.packing import Example
from lab.nano.vocabulary import ANSWER, PAD, vocabulary
from tokensieve.data.store.features import write_store
from tokensieve.files import make_folder
from tokensieve.hf.families.fingerprint import encoder_info, llm_info
from tokensieve.hf.models.nano import load_nano, load_reader

CHUNK = 40


@torch.no_grad()
def hidden_states(
    model: LlavaForConditionalGeneration, features_BLC: Tensor, fronts: Sequence[list[int]]
) -> tuple[Tensor, ...]:
    """(B, L, D) of the visual tokens as they enter each decoder layer, behind the ids `fronts`."""
    inside = model.model
    longest, L = max(map(len, fronts)), features_BLC.shape[1]
    pad = vocabulary()[PAD]
    ids_BF = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in fronts])
    sizes = torch.tensor([[len(ids)] for ids in fronts])
    real_BF = torch.arange(longest) >= longest - sizes
    mask = torch.cat([real_BF, torch.ones(len(ids_BF), L, dtype=torch.bool)], 1)
    embed = inside.language_model.get_input_embeddings()
    out = inside.language_model(
        inputs_embeds=torch.cat([embed(ids_BF), inside.multi_modal_projector(features_BLC)], 1),
        attention_mask=mask.long(),
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        use_cache=False,
        output_hidden_states=True,
    )
    return tuple(states[:, longest:] for states in out.hidden_states[:-1])


def draw(examples: Sequence[Example], seed: int) -> Iterator[tuple[int, list[int]]]:
    """Per picture its row and one of its questions as it stands in front, drawn at random."""
    marker, rng = vocabulary()[ANSWER], np.random.default_rng(seed)
    for example in examples:
        ids = example.asked[int(rng.integers(len(example.asked)))].ids
        yield example.row, ids[: ids.index(marker)]


def load_model(reader: Path | None) -> LlavaForConditionalGeneration:
    """The embedded model, with another projector and LLM where `reader` names them."""
    model, _ = load_nano()
    if reader is not None:
        load_reader(model, reader)  # type: ignore[arg-type]
    return model  # type: ignore[return-value]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of `make nano`: pool, ...")
    parser.add_argument("--out", type=Path, required=True, help="writes the stores layer1, ...")
    parser.add_argument("--reader", type=Path, help="reader.safetensors of ask_first")
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--shards", type=int, default=9, help="shards of the pool to use")
    parser.add_argument("--seed", type=int, default=0, help="of the questions drawn")
    options = command.parse(parser, arguments)
    model = load_model(options.reader)
    train = [("train", number) for number in range(options.shards)]
    features, examples = load_examples(options.data, train)
    pairs = list(draw(examples, options.seed))
    parts: dict[int, list[Tensor]] = {layer: [] for layer in options.layers}
    for start in range(0, len(pairs), CHUNK):
        rows, fronts = zip(*pairs[start : start + CHUNK], strict=True)
        found = hidden_states(model, torch.from_numpy(features[list(rows)]).float(), fronts)
        for layer in options.layers:
            parts[layer].append(found[layer].half())
    make_folder(options.out)
    for layer, states in parts.items():
        info = llm_info(model, layer) if layer else encoder_info(model).at_embeds()
        write_store(options.out / f"layer{layer}", torch.cat(states), info, source="hidden")


if __name__ == "__main__":
    command.run(main, "store")
