"""A LLaVA of a few thousand weights, its processor in Vicuna's words, and rows to train it on."""

import json
import os
import signal

import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tokensieve.hf.fused import fuse
from tokensieve.hf.models.loaded import Loaded
from tokensieve.train.fusion.recipe import make_recipe

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
# LLaVA-1.5's, as it was trained: pictures first, answers end with the end of sequence
VICUNA = (
    "A chat. {% for m in messages %}{% if m['role'] == 'user' %}USER: "
    "{% for c in m['content'] if c['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %} "
    "{% else %}ASSISTANT: {{ m['content'][0]['text'] }}</s>{% endif %}{% endfor %}"
)


def letters():
    """A tokenizer with a token for every character, <s> in front, as a Llama has."""
    chars = [chr(c) for c in range(32, 127)] + ["\n"]
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *chars])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return as_llama(made)


def as_llama(made):
    made.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", padding_side="left", extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip


def processor_of(tokenizer, template=VICUNA):
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}
    )
    return LlavaProcessor(
        pictures, tokenizer, patch_size=12, vision_feature_select_strategy="default",
        chat_template=template, num_additional_image_tokens=1,
    )  # fmt: skip


def toy(template=VICUNA, blocks=2):
    """4 visual tokens a picture, two encoder blocks, weights large enough to matter."""
    base = plain(template)
    made = fuse(base.model, base.processor, blocks=blocks)
    return Loaded("toy", made.model, made.processor)


def plain(template=VICUNA):
    """The LLaVA that `toy` fuses: 16 visual tokens a picture."""
    tokenizer = letters()
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            image_size=48, patch_size=12,
        ),
        text_config=LlamaConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=1,
            eos_token_id=2, initializer_range=0.3,
        ),
        image_token_id=4, vision_feature_layer=-1,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    return Loaded("plain", model, processor_of(tokenizer, template))


COLOURS = ["red", "blue", "green", "black", "white", "orange"]


def rows_of(pictures=8, text_only=2):
    """Rows with answers of very different length."""
    rows = []
    for n in range(pictures):
        colour = COLOURS[n % len(COLOURS)]
        said = [
            ("human", "<image>\nWhat is it?"), ("gpt", f"{colour} " * (1 + n % 4)),
            ("human", "Sure?"), ("gpt", "yes" if n % 2 else "no, not at all"),
        ]  # fmt: skip
        rows.append({"id": f"p{n}", "image": f"{n}.png", "conversations": turns(*said)})
    for n in range(text_only):
        said = turns(("human", f"{n} and {n}?"), ("gpt", str(2 * n)))
        rows.append({"id": f"t{n}", "conversations": said})
    return rows


def turns(*said):
    return [{"from": who, "value": what} for who, what in said]


def write_rows(folder, rows, name="rows.json"):
    """The rows' file and the folder of their pictures, plain colours."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for n, row in enumerate(rows):
        if isinstance(row, dict) and "image" in row and row["image"]:
            Image.new("RGB", (60, 48), COLOURS[n % len(COLOURS)]).save(images / row["image"])
    file = folder / name
    lines = "\n".join(json.dumps(row) for row in rows)
    file.write_text(lines if name.endswith("jsonl") else json.dumps(rows))
    return file, images


def toy_recipe(preset, *settings):
    return make_recipe(preset, [
        "train.batch=4", "train.per_device=2", "train.steps=5",
        "train.lr=0.003", "train.llm_lr=0.003",
        "run.workers=0", "run.log_every=1", "run.save_every=2", "lora.rank=2", "lora.alpha=4",
        "lora.dropout=0.2", *settings,
    ])  # fmt: skip


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def killed(point, preset, file, images, out):
    """Train until `point` is reached, where the process is killed as by `kill -9`."""
    from transformers import Trainer

    import tokensieve.files as files
    import tokensieve.train.fusion.checkpoint as checkpoint
    import tokensieve.train.fusion.export as export
    import tokensieve.train.fusion.run as run
    from tokensieve.train.fusion.trainer import FusionTrainer

    torch.set_num_threads(1)
    skip, point = point.startswith("skip "), point.removeprefix("skip ")
    if point.startswith("step"):  # stepN.M: before micro-batch M of step N
        wanted, seen = point.removeprefix("step").split("."), [0]
        number = 2 * int(wanted[0]) + int(wanted[1])
        known = FusionTrainer.compute_loss

        def counted(self, *a, **k):
            if seen[0] == number:
                die()
            seen[0] += 1
            return known(self, *a, **k)

        FusionTrainer.compute_loss = counted
    elif point == "while a checkpoint is written":
        Trainer._save_rng_state = die
    elif point == "while the second checkpoint is written":
        known_rng, count = Trainer._save_rng_state, [0]

        def second(self, *a, **k):
            count[0] += 1
            return die() if count[0] == 2 else known_rng(self, *a, **k)

        Trainer._save_rng_state = second
    elif point == "before a checkpoint is marked":
        run.mark_whole = die
    elif point == "while an old checkpoint is removed":
        checkpoint.shutil.rmtree = die
    elif point == "before the model is written":
        export.full_state = die
    elif point == "before the model has its name":
        files._folder_named = die
    else:
        raise ValueError(point)
    run.train_fusion(toy(), run.Data(file, images), toy_recipe(preset), out, skip_bad_rows=skip)
