"""`POST /v1/blanks`: a region filled from its border, and nothing else changed."""

from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.zoom.blank import fill_levels, harmonic_fill
from services.zoom.settings import ZoomSettings
from shared.api.zoom import BlankRequest, CropRequest, PixelLimitsModel, WireBox
from shared.clients.zoom import ZoomClient
from shared.errors import ZoomError

Encode = Callable[..., bytes]
Pixels = Callable[[bytes], np.ndarray]


def ramp(width_px: int = 96, height_px: int = 80) -> np.ndarray:
    """A grey that grows by one level per pixel to the right and downwards."""
    return np.add.outer(np.arange(height_px), np.arange(width_px)).astype(np.uint8)


def box(x1: int, y1: int, x2: int, y2: int) -> WireBox:
    return WireBox(x1=x1, y1=y1, x2=x2, y2=y2)


def mask(boxes: list[WireBox], shape: tuple[int, ...]) -> np.ndarray:
    covered = np.zeros(shape[:2], dtype=bool)
    for b in boxes:
        covered[b.y1 : b.y2, b.x1 : b.x2] = True
    return covered


async def test_a_bright_spot_on_a_ramp_is_gone_and_the_ramp_goes_on(
    zoom: ZoomClient, encoded: Encode, pixels: Pixels
) -> None:
    picture = ramp()
    picture[30:50, 40:64] = 255
    original = await zoom.ingest(encoded(picture, "PNG"))
    boxes = [box(38, 28, 66, 52), box(60, 40, 72, 60)]

    blanked = await zoom.blank(BlankRequest(image=original.image, rectangles=boxes))
    filled = pixels(await zoom.image_bytes(blanked.image)).astype(int)

    inside = mask(boxes, picture.shape)
    assert blanked.blanked_px == inside.sum() == 28 * 24 + 12 * 20 - 6 * 12
    assert (blanked.width_px, blanked.height_px) == (96, 80)
    assert np.array_equal(filled[~inside], picture[~inside])
    assert np.abs(filled - ramp())[inside].max() <= 2


async def test_a_region_at_the_edge_of_a_colour_image_takes_the_colours_beside_it(
    zoom: ZoomClient, encoded: Encode, pixels: Pixels
) -> None:
    picture = np.zeros((60, 90, 3), dtype=np.uint8)
    picture[:] = (200, 10, 90)
    picture[:20, :30] = 0
    original = await zoom.ingest(encoded(picture, "PNG"))

    blanked = await zoom.blank(BlankRequest(image=original.image, rectangles=[box(0, 0, 30, 20)]))

    filled = pixels(await zoom.image_bytes(blanked.image))
    assert np.array_equal(filled, np.broadcast_to([200, 10, 90], (60, 90, 3)))


async def test_what_was_blanked_is_an_original_like_any_other(
    zoom: ZoomClient, encoded: Encode
) -> None:
    original = await zoom.ingest(encoded(ramp(), "PNG"))
    request = BlankRequest(image=original.image, rectangles=[box(10, 10, 40, 40)])

    first, again = await zoom.blank(request), await zoom.blank(request)

    assert first.image == again.image != original.image
    limits = PixelLimitsModel(min_pixels=28 * 28, max_pixels=84 * 84)
    view = await zoom.crop(CropRequest(image=first.image, limits=limits))
    assert (view.image_width_px, view.image_height_px) == (96, 80)


@pytest.mark.parametrize(
    ("rectangles", "says"),
    [
        ([box(0, 0, 97, 10)], "inside the image (96x80 px)"),
        ([box(10, 10, 10, 20)], "x1 < x2"),
        ([box(-1, 0, 5, 5)], "inside the image"),
        ([box(0, 0, 50, 80), box(40, 0, 96, 80)], "cover the whole image"),
    ],
)
async def test_a_region_that_cannot_be_blanked_is_refused_with_the_reason(
    zoom: ZoomClient, encoded: Encode, rectangles: list[WireBox], says: str
) -> None:
    original = await zoom.ingest(encoded(ramp(), "PNG"))
    with pytest.raises(ZoomError, match="422") as refused:
        await zoom.blank(BlankRequest(image=original.image, rectangles=rectangles))
    assert says in str(refused.value)
    assert not refused.value.is_transient


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"image": "0" * 64, "rectangles": [{"x1": 0, "y1": 0, "x2": 9, "y2": 9}]}, "No such"),
        ({"image": "0" * 64, "rectangles": []}, "at least 1"),
        ({"image": "nobody", "rectangles": [{"x1": 0, "y1": 0, "x2": 9, "y2": 9}]}, "pattern"),
    ],
)
async def test_a_bad_request_is_a_problem(
    http: httpx.AsyncClient, body: dict[str, Any], says: str
) -> None:
    response = await http.post("/v1/blanks", json=body)
    assert response.status_code in (404, 422)
    assert response.headers["content-type"] == "application/problem+json"
    assert says in response.text


async def test_a_region_may_span_no_more_pixels_than_the_limit(
    run_zoom: Callable[[ZoomSettings], Any], zoom_settings: ZoomSettings, encoded: Encode
) -> None:
    small = zoom_settings.model_copy(update={"max_blank_pixels": 22 * 22})
    async with run_zoom(small) as http:
        zoom = ZoomClient("http://zoom", http)
        image = (await zoom.ingest(encoded(ramp(), "PNG"))).image
        await zoom.blank(BlankRequest(image=image, rectangles=[box(10, 10, 30, 30)]))
        with pytest.raises(ZoomError, match="at most 484 pixels"):
            await zoom.blank(BlankRequest(image=image, rectangles=[box(10, 10, 31, 30)]))


@settings(max_examples=40)
@given(
    height=st.integers(2, 40),
    width=st.integers(2, 40),
    seed=st.integers(0, 2**32 - 1),
    share=st.floats(0.05, 0.95),
)
def test_a_filled_pixel_lies_between_the_darkest_and_the_brightest_known_one(
    height: int, width: int, seed: int, share: float
) -> None:
    random = np.random.default_rng(seed)
    greys = random.uniform(0, 255, (height, width)).astype(np.float32)
    is_known = random.uniform(size=(height, width)) > share
    is_known[random.integers(height), random.integers(width)] = True

    filled = harmonic_fill(greys, is_known)

    known = greys[is_known]
    assert np.array_equal(filled[is_known], known)
    assert known.min() - 1e-3 <= filled.min()
    assert filled.max() <= known.max() + 1e-3


def test_the_fill_is_the_harmonic_function_of_its_border() -> None:
    """x² − y² is harmonic, also on the grid: the mean of the four neighbours is the value."""
    x, y = np.meshgrid(np.arange(48) - 24, np.arange(48) - 24)
    greys = np.rint(128 + (x**2 - y**2) / 6).clip(0, 255).astype(np.uint8)
    is_blank = np.zeros(greys.shape, dtype=bool)
    is_blank[12:36, 12:36] = True
    holed = np.where(is_blank, 0, greys).astype(np.uint8)

    filled = fill_levels(holed, is_blank)

    assert np.abs(filled.astype(int) - greys).max() <= 2
