"""Stage 4: encoder and reader in one standard Llava folder, in fp16, with its processors and the
row-end token that it takes as a LLaVA-NeXT (`load_nano("llava-next", path=FOLDER)`).

`python -m lab.nano2.assemble --encoder FILE --reader FILE --out FOLDER`; then
`tokensieve ask page.png "Total?" --model FOLDER`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from lab import command
from lab.nano.clip import normalise
from lab.nano.llava import write_llava
from lab.nano.lm import Reader
from lab.nano.vocabulary import UNK, with_template
from lab.nano2.asking import VOCABULARY
from lab.nano2.features import trained
from lab.nano2.keep import averaged_in, state_of
from lab.nano2.pages import HARDEST, page
from lab.nano2.train_reader import ReaderRecipe, build_llava
from tokensieve.files import written_folder
from tokensieve.nn.pretrained import write_weights


def tokenizer() -> PreTrainedTokenizerFast:
    """Character by character, capitals apart from small letters."""
    core = Tokenizer(models.WordLevel(VOCABULARY, unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    return with_template(core)


def model_of(encoder: Path, reader: Path) -> LlavaForConditionalGeneration:
    """The whole model in float32 from the averaged weights of two checkpoints."""
    dense, _ = trained(encoder)
    recipe = dict(state_of(reader)["recipe"])
    recipe["stages"] = tuple(tuple(stage) for stage in recipe["stages"])
    model = build_llava(dense.encoder.config, ReaderRecipe(**recipe))
    model.model.vision_tower.load_state_dict(dense.encoder.state_dict())
    Reader(model).load_state_dict(averaged_in(reader))
    model.train(False)
    return model


@torch.no_grad()
def row_end(model: LlavaForConditionalGeneration, pages: int = 20) -> torch.Tensor:
    """The mean projected feature of some pages, (D,): it was not trained; a mean says least."""
    drawn = [page(0, "val", index, HARDEST).image for index in range(pages)]
    found = model.model.get_image_features(
        normalise(torch.from_numpy(np.stack(drawn))),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    ).pooler_output
    return torch.cat(list(found)).mean(0)


def assemble(encoder: Path, reader: Path, out: Path) -> None:
    """Write model (fp16), processors and row-end token to the folder `out`."""
    model = model_of(encoder, reader)
    newline = row_end(model).half()
    torch.nn.Module.to(model, torch.float16)
    with written_folder(out) as part:
        write_weights(part / "newline.safetensors", {"image_newline": newline})
        write_llava(part, model, tokenizer())


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", type=Path, required=True, help="checkpoint of stage 1")
    parser.add_argument("--reader", type=Path, required=True, help="checkpoint of stage 3")
    parser.add_argument("--out", type=Path, required=True)
    given = command.parse(parser, arguments)
    assemble(given.encoder, given.reader, given.out)


if __name__ == "__main__":
    command.run(main, "file")
