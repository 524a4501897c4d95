"""Sizes and positions of images under Qwen2.5-VL's configuration, transformers as the oracle."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from services.trainer.tiny.sequences import Speller
from shared.geometry import PATCH_FACTOR_PX, ImageSize, PixelLimits, smart_resize
from tests.realvocab.checkpoint import CROP_LIMITS, PROCESSOR_LIMITS, VIEW_LIMITS, build_config
from tests.realvocab.vocabulary import TOKEN_IDS, build_tokenizer

from transformers import (  # isort: skip - the vocabulary has declared torchvision's operators
    AutoImageProcessor,
    Qwen2_5_VLModel,
    Qwen2VLImageProcessor,
)

QWEN_LIMITS = PixelLimits(min_pixels=3_136, max_pixels=12_845_056)
"""Of Qwen2.5-VL's own processor."""
PAD = TOKEN_IDS["<|image_pad|>"]

sides = st.integers(1, 6_000)
shown_sizes = st.builds(
    lambda w, h: ImageSize(w * PATCH_FACTOR_PX, h * PATCH_FACTOR_PX),
    st.integers(1, 12),
    st.integers(1, 12),
)


@pytest.fixture(scope="module")
def model() -> Qwen2_5_VLModel:
    """Its positions need the configuration, no weights."""
    with torch.device("meta"):
        return Qwen2_5_VLModel(build_config())


@settings(deadline=None, max_examples=300)
@given(sides, sides, st.sampled_from([QWEN_LIMITS, PROCESSOR_LIMITS, VIEW_LIMITS, CROP_LIMITS]))
def test_an_image_takes_the_tokens_its_processor_gives_it(
    width: int, height: int, limits: PixelLimits
) -> None:
    assume(max(width, height) <= 200 * min(width, height))
    size = {"shortest_edge": limits.min_pixels, "longest_edge": limits.max_pixels}
    processor = Qwen2VLImageProcessor(size=size)
    num_patches = processor.get_number_of_image_patches(height, width, {})
    shown = smart_resize(ImageSize(width, height), limits)
    assert shown.num_image_tokens * processor.merge_size**2 == num_patches


@pytest.mark.parametrize("size", [(336, 280), (28, 28), (1000, 90), (61, 447), (168, 140)])
def test_a_shown_image_is_not_resized_again(checkpoint: Path, size: tuple[int, int]) -> None:
    """Zoom renders at the final size; the engine's processor must find nothing left to do."""
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    for limits in (VIEW_LIMITS, CROP_LIMITS):
        shown = smart_resize(ImageSize(*size), limits)
        pixels = np.zeros((shown.height_px, shown.width_px, 3), dtype=np.uint8)
        grid = processor(images=[pixels], return_tensors="pt")["image_grid_thw"][0].tolist()
        assert grid == [1, shown.height_px // 14, shown.width_px // 14]


def sequence(texts: list[int], images: list[ImageSize]) -> list[int]:
    """Runs of text of these lengths with an image after each but the last."""
    ids: list[int] = []
    for length, image in zip(texts, images, strict=False):
        ids += [*[100] * length, TOKEN_IDS["<|vision_start|>"]]
        ids += [*[PAD] * image.num_image_tokens, TOKEN_IDS["<|vision_end|>"]]
    return ids + [100] * texts[-1]


def expected_positions(ids: list[int], images: list[ImageSize]) -> torch.Tensor:
    """(3, L): text counts on; an image keeps its time, and its cells their row and column."""
    columns: list[tuple[int, int, int]] = []
    left, at, index = list(images), 0, 0
    while index < len(ids):
        if ids[index] != PAD:
            columns.append((at, at, at))
            at, index = at + 1, index + 1
            continue
        size = left.pop(0)
        rows, cells = size.height_px // PATCH_FACTOR_PX, size.width_px // PATCH_FACTOR_PX
        columns += [(at, at + y, at + x) for y in range(rows) for x in range(cells)]
        at, index = at + max(rows, cells), index + rows * cells
    return torch.tensor(columns).T


def transformers_positions(
    model: Qwen2_5_VLModel, rows: list[list[int]], images: list[ImageSize]
) -> torch.Tensor:
    """(3, B, L) as the trainer asks for them: rows padded on the right."""
    longest = max(map(len, rows))
    ids_BL = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask_BL = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    grid = [[1, size.height_px // 14, size.width_px // 14] for size in images]
    positions, _ = model.get_rope_index(
        ids_BL,
        mm_token_type_ids=(ids_BL == PAD).int(),
        image_grid_thw=torch.tensor(grid),
        attention_mask=mask_BL,
    )
    return positions


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 9), shown_sizes), min_size=1, max_size=5),
        min_size=1,
        max_size=4,
    )
)
def test_padded_rows_of_many_images_have_the_positions_of_each_alone(
    model: Qwen2_5_VLModel, batch: list[list[tuple[int, ImageSize]]]
) -> None:
    rows = [sequence([*(n for n, _ in row), 3], [size for _, size in row]) for row in batch]
    together = transformers_positions(model, rows, [size for row in batch for _, size in row])
    for index, (ids, row) in enumerate(zip(rows, batch, strict=True)):
        images = [size for _, size in row]
        expected = expected_positions(ids, images)
        assert torch.equal(together[:, index, : len(ids)], expected)
        assert torch.equal(transformers_positions(model, [ids], images)[:, 0], expected)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), shown_sizes)
def test_the_spellers_positions_are_transformers(
    model: Qwen2_5_VLModel, texts: list[int], size: ImageSize
) -> None:
    grid_hw = (size.height_px // PATCH_FACTOR_PX, size.width_px // PATCH_FACTOR_PX)
    speller = Speller(build_tokenizer(), "Which kind?", ("ring", "disc"), grid_hw)
    images = [size] * (len(texts) - 1)
    ids = sequence(texts, images)
    expected = transformers_positions(model, [ids], images)[:, 0]
    assert torch.equal(speller.positions(ids), expected)
