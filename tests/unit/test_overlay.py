"""Overlays are exact: what is painted as a token's place is what the processor shows that token."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tokensieve.errors import UnsupportedError
from tokensieve.hf.report import CropReport, ImageReport
from tokensieve.viz.compare import Shown, crop_masks, overlay_rows
from tokensieve.viz.geometry import crop_boxes
from tokensieve.viz.overlay import DIM, MERGED, CropMask, dim, enlarge, token_map
from tokensieve.viz.sheet import Panel, sheet

PATCH, SIDE = 12, 96
PLAIN = {"image_mean": [0, 0, 0], "image_std": [1, 1, 1], "resample": 0}
CROPPED = {
    "size": {"shortest_edge": SIDE},
    "crop_size": {"height": SIDE, "width": SIDE},
    **PLAIN,
}
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE], [SIDE, 3 * SIDE]]
PROCESSORS = {
    "clip": CLIPImageProcessorPil(**CROPPED),
    "squashed": CLIPImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, do_center_crop=False, **PLAIN
    ),
    "padded": LlavaImageProcessorPil(do_pad=True, **CROPPED),
    "next": LlavaNextImageProcessorPil(image_grid_pinpoints=PINPOINTS, **CROPPED),
    "qwen": Qwen2VLImageProcessorPil(
        size={"shortest_edge": 24 * 24 * 4, "longest_edge": 24 * 24 * 40}, patch_size=PATCH, **PLAIN
    ),
}
SQUARE = {"size": {"height": SIDE, "width": SIDE}, **PLAIN}
SPLIT = {"size": {"longest_edge": 4 * SIDE}, "max_image_size": {"longest_edge": SIDE}, **PLAIN}
PAN = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 48, "pan_and_scan_max_num_crops": 4,
       "pan_and_scan_min_ratio_to_activate": 1.2}  # fmt: skip
PROCESSORS |= {
    "onevision": LlavaOnevisionImageProcessorPil(image_grid_pinpoints=PINPOINTS, **SQUARE),
    "internvl": GotOcr2ImageProcessorPil(
        crop_to_patches=True, min_patches=1, max_patches=6, **SQUARE
    ),
    "idefics3": Idefics3ImageProcessorPil(**SPLIT),
    "smolvlm": SmolVLMImageProcessorPil(**SPLIT),
    "idefics3-whole": Idefics3ImageProcessorPil(do_image_splitting=False, **SPLIT),
    "gemma3": Gemma3ImageProcessorPil(**PAN, **SQUARE),
    "pixtral": PixtralImageProcessorPil(
        size={"longest_edge": 2 * SIDE}, patch_size={"height": PATCH, "width": PATCH}, **PLAIN
    ),
}
SIZES = [(96, 96), (193, 192), (192, 397), (500, 211), (61, 40)]


def light_per_token(processor, picture):
    """Mean brightness under every token, (tokens,) a crop with its grid, from the pixels made."""
    made = processor(picture, return_tensors="pt")
    if "image_grid_thw" in made:
        _, rows, columns = (int(v) for v in made["image_grid_thw"][0])
        light = made["pixel_values"].view(-1, 4, made["pixel_values"].shape[1]).mean((1, 2))
        return [((rows // 2, columns // 2), light)]
    crops = made["pixel_values"].flatten(0, -4)
    grid = (crops.shape[2] // PATCH, crops.shape[3] // PATCH)
    cells = crops.unflatten(2, (-1, PATCH)).unflatten(4, (-1, PATCH)).mean((1, 3, 5))
    return [(grid, one.flatten()) for one in cells]


def misplaced(processor, size, boxes, picks=7):
    """Tokens that do not light up when just their place in the picture is painted white."""
    black = light_per_token(processor, Image.new("RGB", size))
    assert len(boxes) == len(black)
    wrong = []
    for c, (box, (grid, _)) in enumerate(zip(boxes, black, strict=True)):
        tokens_HW = token_map(size, box, grid)
        seen = np.unique(tokens_HW[tokens_HW >= 0])
        for token in seen[np.linspace(0, len(seen) - 1, picks).astype(int)]:
            here = tokens_HW == token
            light = light_per_token(processor, Image.fromarray((here * 255).astype(np.uint8)))[c][1]
            share = (light[token] / light.sum()).item()
            if int(light.argmax()) != token or share < 0.6:
                wrong.append((c, int(token), share))
    return wrong


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PROCESSORS)
def test_a_painted_place_lights_its_own_token(name, size):
    processor = PROCESSORS[name]
    assert misplaced(processor, size, crop_boxes(processor, size)) == []


def test_a_box_off_by_one_patch_is_noticed():
    processor, size = PROCESSORS["clip"], (192, 397)
    left, top, right, bottom = crop_boxes(processor, size)[0]
    patch = (right - left) / (SIDE // PATCH)
    assert misplaced(processor, size, [(left + patch, top, right + patch, bottom)])


@pytest.mark.parametrize("name", ["internvl", "idefics3", "smolvlm", "gemma3", "onevision"])
def test_tiles_in_another_order_are_noticed(name):
    boxes = crop_boxes(PROCESSORS[name], (500, 211))
    assert len(boxes) > 2
    assert misplaced(PROCESSORS[name], (500, 211), boxes[::-1])


@pytest.mark.parametrize("name", ["idefics3", "smolvlm", "internvl"])
def test_there_are_as_many_boxes_as_crops_whatever_the_size(name):
    for size in [(1, 900), (95, 97), (97, 95), (192, 191), (287, 96), (288, 1), (331, 640)]:
        made = PROCESSORS[name](Image.new("RGB", size), return_tensors="pt")
        crops = made["pixel_values"].flatten(0, -4)
        assert len(crop_boxes(PROCESSORS[name], size)) == len(crops), size


def test_several_pictures_of_onevision_are_padded_squares():
    processor, size = PROCESSORS["onevision"], (500, 211)
    assert crop_boxes(processor, size, alone=False) == [(0.0, -144.0, 500.0, 356.0)]
    pictures = [Image.new("RGB", size), Image.new("RGB", (96, 96))]
    made = processor([pictures], return_tensors="pt")["pixel_values"]
    assert made.shape[:2] == (2, 1)


def test_the_middle_of_a_wide_picture_is_what_clip_sees():
    assert crop_boxes(PROCESSORS["clip"], (300, 100)) == [(100.0, 0.0, 200.0, 100.0)]
    assert crop_boxes(PROCESSORS["squashed"], (300, 100)) == [(0.0, 0.0, 300.0, 100.0)]
    assert crop_boxes(PROCESSORS["padded"], (300, 100)) == [(0.0, -100.0, 300.0, 200.0)]


@pytest.mark.parametrize("flag", ["do_image_splitting", "crop_to_patches", "split_image"])
def test_a_processor_that_splits_in_unknown_ways_is_refused(flag):
    splitting = type("Splitting", (), {flag: True})()
    with pytest.raises(UnsupportedError, match=rf"Got Splitting, which .*\({flag}\)\. Switch"):
        crop_boxes(splitting, (10, 10))


def test_every_pixel_is_dimmed_by_the_fate_of_its_token():
    picture = Image.new("RGB", (8, 4), (200, 100, 40))
    crop = CropMask.of((0.0, 0.0, 8.0, 4.0), (2, 4), kept=[0, 7], merged=[0, 1, 7])
    got = np.asarray(dim(picture, [crop])).astype(int)
    want = np.empty((4, 8, 3), dtype=int)
    for y in range(4):
        for x in range(8):
            token = (y // 2) * 4 + x // 2
            factor = 1 if token in (0, 7) else MERGED if token == 1 else DIM
            want[y, x] = np.floor(np.array([200, 100, 40]) * factor + 0.5)
    np.testing.assert_array_equal(got, want)


def test_outside_every_crop_is_hatched_and_overlaps_show_the_better_fate():
    picture = Image.new("RGB", (6, 2), "white")
    left = CropMask.of((0.0, 0.0, 4.0, 2.0), (1, 2), kept=[1])
    right = CropMask.of((2.0, 0.0, 6.0, 2.0), (1, 2), kept=[])
    got = np.asarray(dim(picture, [left, right]))[0, :, 0]
    assert got.tolist() == [56, 56, 255, 255, 56, 56]
    unseen = np.asarray(dim(picture, [left]))[0, 4:]
    assert (unseen[:, 2] > unseen[:, 0]).all(), "what the model never saw is bluish"


def test_enlarging_keeps_tokens_in_place():
    crop = CropMask.of((-3.0, 0.0, 15.0, 9.0), (3, 6), kept=[4])
    large, (scaled,) = enlarge(Image.new("RGB", (10, 9)), [crop], 35)
    assert large.size == (40, 36)
    small_HW = token_map((10, 9), crop.box, crop.grid)
    np.testing.assert_array_equal(
        token_map(large.size, scaled.box, scaled.grid), small_HW.repeat(4, 0).repeat(4, 1)
    )


def image_report(kept, assign=None, grid=(2, 2)):
    valid = torch.ones(4, dtype=torch.bool)
    return ImageReport(4, len(kept), 0, (CropReport(grid, valid, torch.tensor(kept), assign),))


def test_masks_read_the_report():
    assign = torch.tensor([0, 0, -1, 3])
    (mask,) = crop_masks([(0.0, 0.0, 8.0, 8.0)], image_report([0, 3], assign))
    assert mask.fate.tolist() == [2, 1, 0, 2]


def test_masks_refuse_what_they_cannot_place():
    with pytest.raises(UnsupportedError, match="Expected 2 crops"):
        crop_masks([(0.0, 0.0, 8.0, 8.0)] * 2, image_report([0]))
    with pytest.raises(UnsupportedError, match="Expected tokens on a grid"):
        crop_masks([(0.0, 0.0, 8.0, 8.0)], image_report([0], grid=None))


def test_a_sheet_has_a_panel_for_the_picture_and_each_method():
    class Processor:
        image_processor = PROCESSORS["clip"]

    shown = [Shown("full", ("4 of 4 tokens: yes",), image_report([0, 1, 2, 3])),
             Shown("none", ("0 of 4 tokens: no",), None)]  # fmt: skip
    rows = overlay_rows(Processor(), Image.new("RGB", (96, 96), "red"), shown)
    page = sheet(rows, heading="red?", width=384)
    assert page.width == 3 * (384 + 14) + 14
    at = page.getpixel
    y = page.height // 3
    assert at((200, y)) == (255, 0, 0)
    assert at((600, y)) == (255, 0, 0)
    assert at((1000, y))[0] < 120


def test_base_view_and_tiles_have_a_row_each():
    class Processor:
        image_processor = PROCESSORS["next"]

    picture = Image.new("RGB", (192, 192), "white")
    one = image_report([0])
    five = ImageReport(20, 5, 0, one.crops * 5)
    base, tiles = overlay_rows(Processor(), picture, [Shown("m", (), five)])
    assert [panel.lines for panel in (base[1], tiles[1])] == [("whole picture",), ("4 tiles",)]
    bright = [np.asarray(panel.picture)[..., 0] > 200 for panel in (base[1], tiles[1])]
    assert bright[0].mean() == 0.25
    assert bright[1].mean() == 0.25
    assert bright[0][:192, :192].all(), "of the base view the top left quarter is kept"
    assert bright[1][192:288, 192:288].all(), "of each tile its own top left quarter"


def test_long_captions_wrap_and_cut():
    panel = Panel(Image.new("RGB", (10, 10)), "title", ("word " * 40, "x" * 400))
    one = sheet([[panel]], width=200)
    two = sheet([[panel, panel]], width=200, heading="heading " * 10)
    assert one.width == 228
    assert two.width > one.width
    assert two.height > one.height
