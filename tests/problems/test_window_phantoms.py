"""CT phantoms whose lesion one window hides wholly and another shows: told by their pixels."""

import io
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from services.problems.backgrounds import ct_grey
from services.problems.dicom_file import dicom_bytes
from services.problems.hounsfield import FILE_WINDOW, SOFT_TISSUE, in_window, to_hounsfield
from services.problems.ingest import ingest_phantoms
from services.problems.lesions import KINDS, draw_lesion
from services.problems.phantoms import WINDOWED, place_lesion, render_phantom
from services.problems.scenes import render_hidden_scene
from services.zoom.app import create_app
from services.zoom.settings import ZoomSettings
from shared.api.zoom import CropRequest, PixelLimitsModel, WireWindow
from shared.clients.zoom import ZoomClient
from shared.geometry import Box, ImageSize, PixelLimits
from shared.render import show_region

VIEW = PixelLimits(168 * 168, 168 * 168)
ALL_OF_IT = Box.whole(ImageSize(336, 336))
LIMITS = PixelLimitsModel(min_pixels=VIEW.min_pixels, max_pixels=VIEW.max_pixels)


def kinds_of(index: int) -> list[NDArray[np.int16]]:
    """The same phantom without a lesion, and with a lesion of every kind."""
    rng = np.random.default_rng(index)
    background = ct_grey(rng)
    lesion = place_lesion(background, rng, WINDOWED, 0)
    drawn = [background.image_hw3] + [
        draw_lesion(background.image_hw3, replace(lesion, kind=kind)) for kind in range(len(KINDS))
    ]
    return [to_hounsfield(image[..., 0]) for image in drawn]


@pytest.mark.parametrize("index", range(8))
def test_the_files_own_window_shows_neither_kind_nor_place(index: int) -> None:
    shown = [np.asarray(in_window(hounsfield, FILE_WINDOW)) for hounsfield in kinds_of(index)]
    for other in shown[1:]:
        assert np.array_equal(shown[0], other), "to the last pixel, with or without a lesion"


@pytest.mark.parametrize("index", range(3))
def test_a_soft_tissue_window_shows_the_place_and_the_kind_when_enlarged(
    index: int,
) -> None:
    bare, *kinds = (in_window(hounsfield, SOFT_TISSUE) for hounsfield in kinds_of(index))
    views = [np.asarray(show_region(kind, ALL_OF_IT, VIEW)).astype(int) for kind in kinds]
    without = np.asarray(show_region(bare, ALL_OF_IT, VIEW)).astype(int)
    originals = [np.asarray(kind).astype(int) for kind in kinds]
    for view, original in zip(views[1:], originals[1:], strict=True):
        assert abs(view - views[0]).max() <= 8, "the view of every kind is the same"
        assert abs(original - originals[0]).max() >= 40, "the original is not"
    assert abs(views[0] - without).max() >= 60, "and the place shows in it"


async def test_zoom_shows_a_phantom_as_the_scenes_are_shown(tmp_path: Path) -> None:
    app = create_app(ZoomSettings(blob_url=str(tmp_path)))
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://zoom")
    phantom = render_phantom(WINDOWED, 1, 0)
    assert phantom.hounsfield_hw is not None
    async with app.router.lifespan_context(app), http:
        zoom = ZoomClient("http://zoom", http)
        problems, _ = await ingest_phantoms([phantom], zoom, lambda _: None)
        for window in (None, SOFT_TISSUE, (30, 350)):
            wire = None if window is None else WireWindow(center=window[0], width=window[1])
            asked = CropRequest(image=problems[0].image, limits=LIMITS, window=wire)
            crop = await zoom.crop_bytes((await zoom.crop(asked)).crop)
            expected = in_window(phantom.hounsfield_hw, window or FILE_WINDOW)
            shown = np.asarray(show_region(expected, ALL_OF_IT, VIEW))
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(crop))), shown)


def test_the_same_phantom_is_the_same_file() -> None:
    phantom = render_phantom(WINDOWED, 1, 3)
    assert phantom.hounsfield_hw is not None
    files = {dicom_bytes(phantom.hounsfield_hw, FILE_WINDOW, "a") for _ in range(2)}
    assert len(files) == 1


def test_a_hidden_scene_is_first_shown_in_the_files_window() -> None:
    scene = render_hidden_scene(0, 1, found_share=1.0)
    assert scene.hidden is not None
    first, view = (np.asarray(p).astype(int) for p in (scene.hidden.view, scene.view))
    x, y = (int(c) for c in scene.target)
    around = (slice(y - 3, y + 4), slice(x - 3, x + 4))
    assert (first[around] == 255).all(), "white where the target is"
    assert view[around].mean() < 230, "which shows in the window that is to be set"
