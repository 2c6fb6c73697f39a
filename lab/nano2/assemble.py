"""Stage 4: encoder and reader in one standard Llava folder, in fp16, with its processors.

`python -m lab.nano2.assemble --encoder FILE --reader FILE --out FOLDER`; then
`tokensieve ask page.png "Total?" --model FOLDER`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from lab.nano.lm import Reader
from lab.nano.vocabulary import ANSWER, CHAT_TEMPLATE, EOS, IMAGE, PAD, UNK
from lab.nano2 import keep
from lab.nano2.asking import VOCABULARY
from lab.nano2.features import trained
from lab.nano2.labels import PATCH
from lab.nano2.sheet import SIZE
from lab.nano2.train_reader import ReaderRecipe, build_llava

HALF = [0.5, 0.5, 0.5]


def tokenizer() -> PreTrainedTokenizerFast:
    """Character by character, capitals apart from small letters."""
    core = Tokenizer(models.WordLevel(VOCABULARY, unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=[IMAGE, ANSWER],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    made.chat_template = CHAT_TEMPLATE
    return made


def model_of(encoder: Path, reader: Path) -> LlavaForConditionalGeneration:
    """The whole model in float32 from the averaged weights of two checkpoints."""
    dense, _ = trained(encoder)
    recipe = dict(keep.state_of(reader)["recipe"])
    recipe["stages"] = tuple(tuple(stage) for stage in recipe["stages"])
    model = build_llava(dense.encoder.config, ReaderRecipe(**recipe))
    model.model.vision_tower.load_state_dict(dense.encoder.state_dict())
    Reader(model).load_state_dict(keep.part(load_file(reader), "averaged."))
    model.train(False)
    return model


def assemble(encoder: Path, reader: Path, out: Path) -> None:
    """Write model (fp16) and processors to the folder `out`."""
    model = model_of(encoder, reader)
    out.mkdir(parents=True, exist_ok=True)
    torch.nn.Module.to(model, torch.float16)
    model.save_pretrained(out)
    tokenizer().save_pretrained(out)
    side = {"height": SIZE, "width": SIZE}
    CLIPImageProcessorPil(
        size=side, crop_size=side, do_center_crop=False, image_mean=HALF, image_std=HALF
    ).save_pretrained(out)
    layout = {
        "processor_class": "LlavaProcessor",
        "patch_size": PATCH,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    (out / "processor_config.json").write_text(json.dumps(layout, indent=2) + "\n")


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", type=Path, required=True, help="checkpoint of stage 1")
    parser.add_argument("--reader", type=Path, required=True, help="checkpoint of stage 3")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    assemble(given.encoder, given.reader, given.out)


if __name__ == "__main__":
    main()
