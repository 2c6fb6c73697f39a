"""Tokenizer, chat template and image processor that a converted checkpoint takes along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AddedToken, AutoImageProcessor, AutoTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from tokensieve.errors import WeightsError
from tokensieve.hf.models.loaded import code_refused, first_line

IMAGE = "<image>"
# the conversation that LLaVA-1.5 was trained on
TEMPLATE = (
    "{{ bos_token }}A chat between a curious user and an artificial intelligence assistant. The "
    "assistant gives helpful, detailed, and polite answers to the user's questions."
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %} USER: {% else %} ASSISTANT: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] != 'user' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


def tokenizer_with_image(source: str, config: Any) -> tuple[Any, int]:
    """The tokenizer in a folder, of an LLM of this config, and its id of the image token.

    The image token is added if it is missing, and so are a chat template and a token to pad with.
    Raises `WeightsError` if there is no tokenizer.
    """
    tokenizers: Any = AutoTokenizer  # untyped in Transformers
    try:
        tokenizer = tokenizers.from_pretrained(source, config=config, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise code_refused(source, error) or WeightsError(
            f"Expected a tokenizer's files in '{source}'. Got: {first_line(error)} Copy them there "
            "from the LLM."
        ) from error
    if IMAGE not in tokenizer.get_vocab():
        token: Any = AddedToken(IMAGE, special=True, normalized=False)
        tokenizer.add_tokens([token], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if tokenizer.chat_template is None:
        tokenizer.chat_template = TEMPLATE
    return tokenizer, int(tokenizer.convert_tokens_to_ids(IMAGE))


def image_processor(source: str, size: tuple[int, int], values: Mapping[str, Any]) -> Any:
    """The encoder's image processor, which first pads to a square if the checkpoint's config says.

    Of CLIP's own kind where the encoder's folder holds none.
    """
    processors: Any = AutoImageProcessor  # untyped in Transformers
    colours: dict[str, Any] = {}
    try:
        own = processors.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if refusal := code_refused(source, error):
            raise refusal from error
        own = None
    if own is not None and values.get("image_aspect_ratio") != "pad":
        return own
    if own is not None:
        kept = ("image_mean", "image_std", "resample", "rescale_factor")
        colours = {name: getattr(own, name) for name in kept}
    height, width = size
    kind: Any = CLIPImageProcessorPil
    if values.get("image_aspect_ratio") == "pad":
        kind, colours["do_pad"] = LlavaImageProcessorPil, True
    return kind(
        size={"shortest_edge": min(size)}, crop_size={"height": height, "width": width}, **colours
    )
