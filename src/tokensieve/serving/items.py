"""What stays of each picture that an engine encodes, by the code that a sieve runs.

N rows of a picture in the prompt, D LLM width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.errors import UnsupportedError
from tokensieve.hf.choose import changed_rows
from tokensieve.hf.encoder.encode import Encoded
from tokensieve.hf.families.fingerprint import encoder_info
from tokensieve.hf.families.layout import Packing
from tokensieve.hf.families.table import crop_features, family_of, placeholders_of
from tokensieve.hf.load import first_layer_only
from tokensieve.hf.plan import Plan
from tokensieve.hf.prompt.reduce import reduce_images
from tokensieve.hf.report import row_mask
from tokensieve.methods.base import Method
from tokensieve.methods.registry import get_method
from tokensieve.serving.setting import Setting, require_no_signals
from tokensieve.types import Site

View = Mapping[str, Any]  # what the processor says of pictures, by Transformers' names


def outline(config: Any) -> Any:
    """A model of Transformers of that config without weights and with one layer of the LLM: what
    the table of families asks its questions of.

    Raises `UnsupportedError` for a config that is no vision-language model of Transformers'.
    """
    from transformers import AutoModelForImageTextToText

    models: Any = AutoModelForImageTextToText  # untyped in Transformers
    try:
        with torch.device("meta"):
            return models.from_config(first_layer_only(config), trust_remote_code=False)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UnsupportedError(
            "Expected a vision-language model that Transformers has too. Got "
            f"'{getattr(config, 'model_type', config)}'. Serve it without tokensieve."
        ) from error


def _rows_of_tile(config: Any) -> int | None:
    """Rows of a tile, where a sieve sees every tile as a picture; None where it sees the whole."""
    if config.model_type == "internvl":
        return int(config.image_seq_length)
    if config.model_type in ("idefics3", "smolvlm"):
        vision = config.vision_config
        return int((vision.image_size // vision.patch_size) ** 2 // config.scale_factor**2)
    return None


def _unpadded(
    view: View, tapped: Sequence[Tensor], packings: Sequence[Packing]
) -> Sequence[Tensor]:
    """Without the crops that a processor pads pictures with, so that those read together stack."""
    crops = [len(one) for one in view.get("pixel_values", ()) if one.ndim == 4]
    if len(crops) != len(packings) or [len(part) for part in tapped] != [sum(crops)]:
        return tapped
    parts = torch.split(tapped[0], crops)
    return [torch.cat([part[: own.crops] for part, own in zip(parts, packings, strict=True)])]


class ItemSieve:
    """A setting made ready for one model; keeps nothing of a request, so threads may share it."""

    def __init__(self, config: Any, setting: Setting, positions: str) -> None:
        """Raises what `Setting.asked` and the plan of a sieve raise, before a request comes."""
        self.setting, self.model = setting, outline(config)
        self.family = family_of(self.model)
        self.plan = Plan.of(self.model, setting.asked(positions), pure=True)
        require_no_signals(setting.method, self.plan.method, encoder_info(self.model))
        if self.plan.method.site is Site.FEATURES and self.family.cells:
            raise UnsupportedError(
                f"Expected a method of the site 'embeds'. Got '{setting.method}', which reads "
                f"features, and a token of '{config.model_type}' is made of several. Use "
                "'divprune'."
            )
        self.like: Method = get_method("stride")  # counts come out alike for every exact method
        self.tile = _rows_of_tile(config)

    def use_projector(self, module: nn.Module) -> None:
        """Merged features are put through the engine's own projector."""
        *path, last = self.family.projector.split(".")
        owner = self.model.base_model
        for name in path:
            owner = getattr(owner, name)
        setattr(owner, last, module)

    def counts(self, view: View, runs: Sequence[int], keep: float | int) -> list[int]:
        """Rows that stay of each run of placeholders of one picture.

        Raises `UnsupportedError` for runs that are no pictures or tiles of their own.
        """
        tiles = [run // (self.tile or run) for run in runs]
        if any(run % self.tile for run in runs) if self.tile else len(runs) > 1:
            raise UnsupportedError(
                "Expected a picture's rows side by side in the prompt, or those of each of its "
                f"tiles. Got runs of {list(runs)} rows and text between them, which would have to "
                "move with the choice. Serve this model without tokensieve."
            )
        each = [run // n for run, n in zip(runs, tiles, strict=True) for _ in range(n)]
        encoded = self._encoded(view, [torch.zeros(n, 1) for n in each])
        masks = iter(self._masks(self.like, encoded, keep)[0])
        return [sum(int(next(masks).sum()) for _ in range(n)) for n in tiles]

    def reduce(
        self, view: View, rows: Sequence[Tensor], tapped: Sequence[Tensor],
        keeps: Sequence[float | int],
    ) -> list[Tensor]:  # fmt: skip
        """(k, D) rows that stay of each picture, in order.

        rows: (N, D) of each, as the LLM would get them. tapped: what the projector was given.
        keeps: of each picture.
        """
        if self.tile:
            tiles = [torch.split(one, self.tile) for one in rows]
            each = [keep for keep, own in zip(keeps, tiles, strict=True) for _ in own]
            left = iter(self._reduce(view, [tile for own in tiles for tile in own], tapped, each))
            return [torch.cat([next(left) for _ in own]) for own in tiles]
        return self._reduce(view, rows, tapped, keeps)

    def _reduce(
        self, view: View, rows: Sequence[Tensor], tapped: Sequence[Tensor],
        keeps: Sequence[float | int],
    ) -> list[Tensor]:  # fmt: skip
        encoded = self._encoded(view, rows, tapped)
        done = list(rows)
        for keep in dict.fromkeys(keeps):
            if keep == 1 and not self.plan.drop_newlines:
                continue
            masks, made = self._masks(self.plan.method, encoded, keep)
            changed = changed_rows(encoded, made)
            new = encoded.images if changed is None else torch.split(changed, encoded.image_rows)
            for i, own in enumerate(keeps):
                if own == keep:
                    done[i] = new[i][masks[i].to(new[i].device)]
        return done

    def _masks(
        self, method: Method, encoded: Encoded, keep: float | int
    ) -> tuple[list[Tensor], list[Any]]:
        made = reduce_images(self.model, method, encoded, keep, self.plan.spread)
        drop = self.plan.drop_newlines
        masks = [
            row_mask(packing, one.kept_nL, drop_newlines=drop)
            for packing, one in zip(encoded.packings, made, strict=True)
        ]
        return masks, made

    def _encoded(
        self, view: View, rows: Sequence[Tensor], tapped: Sequence[Tensor] = ()
    ) -> Encoded:
        """The pictures as if each were alone in a prompt: what is kept of one depends on no other,
        so that the engine may keep its rows for the next prompt."""
        number = len(rows)
        ids = torch.zeros(number, 1, dtype=torch.long, device=rows[0].device)
        inputs = {**view, "input_ids": ids}
        packings = self._packings(inputs, [len(one) for one in rows])
        return Encoded(
            inputs,
            self.family,
            placeholders_of(self.model)["image"],
            packings,
            prompt_of=tuple(range(number)),
            item_rows=tuple(len(one) for one in rows),
            output=SimpleNamespace(pooler_output=list(rows)),
            features=crop_features(
                self.model, self.family, inputs, _unpadded(view, tapped, packings), packings
            ),
            kinds=("image",) * number,
        )

    def _packings(self, inputs: View, rows: list[int]) -> tuple[Packing, ...]:
        packings = tuple(self.family.pack(self.model, inputs, rows))
        if [len(one.origin_N) for one in packings] != rows:
            raise UnsupportedError(
                f"Expected pictures of {[len(one.origin_N) for one in packings]} rows, as "
                f"Transformers packs them. Got {rows} from the engine. Serve this model without "
                "tokensieve."
            )
        return packings
