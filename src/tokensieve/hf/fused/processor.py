"""The processor of a fused LLaVA: fewer placeholders for a picture.

B pictures, k kernel side, E fused tokens of a cell of k x k patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, no_type_check

from transformers import LlavaProcessor
from transformers.image_utils import get_image_size, to_numpy_array
from transformers.processing_utils import MultiModalData

from tokensieve.errors import ConfigError
from tokensieve.nn.fusion import check_divides


class FusedLlavaProcessor(LlavaProcessor):
    """LLaVA's processor with E placeholders for every cell of `kernel` x `kernel` patches.

    CLS never gets a placeholder, so `num_additional_image_tokens` is of no account here.

    Raises `ConfigError` for a kernel that does not divide the grid of patches.
    """

    patch_size: int
    kernel: int
    fused: int

    @no_type_check  # Transformers reads the names in its code object, which a checker would wrap
    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int | None = None,
        vision_feature_select_strategy: str | None = None,
        chat_template: str | None = None,
        image_token: str = "<image>",
        num_additional_image_tokens: int = 0,
        kernel: int = 2,
        fused: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            image_processor,
            tokenizer,
            patch_size=patch_size,
            vision_feature_select_strategy=vision_feature_select_strategy,
            chat_template=chat_template,
            image_token=image_token,
            num_additional_image_tokens=num_additional_image_tokens,
            **kwargs,
        )
        for name, number in (("patch_size", patch_size), ("kernel", kernel), ("fused", fused)):
            if not isinstance(number, int) or number < 1:
                raise ConfigError(
                    f"Expected `{name}` as a number of at least 1. Got {number!r}. Correct it in "
                    "processor_config.json."
                )
        self.kernel, self.fused = kernel, fused

    def tokens(self, height: int, width: int) -> int:
        """Placeholders of a picture of `height` x `width` pixels, as the encoder gets it."""
        grid = (height // self.patch_size, width // self.patch_size)
        check_divides(self.kernel, grid)
        return grid[0] * grid[1] // self.kernel**2 * self.fused

    def replace_image_token(
        self, image_inputs: Mapping[str, Any], image_idx: int, **kwargs: Any
    ) -> str:
        """What one placeholder in a text becomes."""
        height, width = get_image_size(to_numpy_array(image_inputs["pixel_values"][image_idx]))
        return str(self.image_token * self.tokens(height, width))

    def _get_num_multimodal_tokens(
        self, image_sizes: list[list[int]] | None = None, **kwargs: Any
    ) -> MultiModalData:
        """Placeholders of pictures of these sizes; all get the encoder's own."""
        if image_sizes is None:
            return MultiModalData()
        options = self._merge_kwargs(**kwargs)["images_kwargs"]
        size = options.get("crop_size") or getattr(self.image_processor, "crop_size", None)
        size = size or options.get("size") or self.image_processor.size
        count = self.tokens(size["height"], size["width"])
        return MultiModalData(
            num_image_tokens=[count] * len(image_sizes), num_image_patches=[1] * len(image_sizes)
        )
