"""A crop holds the pixels inside its box: shown on an image whose pixels say where they are."""

from collections.abc import Callable

import numpy as np
import pytest

from shared.api.zoom import CropRequest, PixelLimitsModel, WireImageSize
from shared.clients.zoom import ZoomClient

WIDTH, HEIGHT = 420, 308
ANY_SIZE = PixelLimitsModel(min_pixels=28 * 28, max_pixels=64_000_000)


def coordinate_image() -> np.ndarray:
    """Red and blue hold x (low byte, high bit), green holds y's low byte; blue bit 1 y's high."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([x % 256, y % 256, x // 256 + 2 * (y // 256)], axis=-1).astype(np.uint8)


def positions(crop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) that the pixels of a crop say they come from."""
    red, green, blue = (crop[..., channel].astype(int) for channel in range(3))
    return red + 256 * (blue % 2), green + 256 * (blue // 2)


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 28, 28),
        (56, 28, 140, 112),
        (200, 100, 340, 240),
        (364, 280, 420, 308),
        (0, 0, 420, 308),
    ],
)
async def test_a_crop_at_its_own_size_is_exactly_the_pixels_of_its_box(
    zoom: ZoomClient,
    encoded: Callable[..., bytes],
    pixels: Callable[[bytes], np.ndarray],
    box: tuple[int, int, int, int],
) -> None:
    image = (await zoom.ingest(encoded(coordinate_image(), "PNG"))).image
    crop = await zoom.crop(CropRequest(image=image, box=list(box), limits=ANY_SIZE))
    x1, y1, x2, y2 = box
    expected_y, expected_x = np.mgrid[y1:y2, x1:x2]
    x, y = positions(pixels(await zoom.crop_bytes(crop.crop)))
    assert np.array_equal(x, expected_x)
    assert np.array_equal(y, expected_y)


@pytest.mark.parametrize("bbox_2d", [(10, 20, 60, 80), (0, 0, 30, 30), (100.5, 60.2, 139.9, 101)])
async def test_an_enlarged_crop_of_a_view_box_shows_the_place_the_model_meant(
    zoom: ZoomClient,
    encoded: Callable[..., bytes],
    pixels: Callable[[bytes], np.ndarray],
    bbox_2d: tuple[float, float, float, float],
) -> None:
    """On a smooth ramp every shown pixel tells its place to within a pixel of the original."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    ramp = np.stack([x * 255 / (WIDTH - 1), y * 255 / (HEIGHT - 1), 0 * x], axis=-1)
    image = (await zoom.ingest(encoded(np.rint(ramp).astype(np.uint8), "PNG"))).image
    view = WireImageSize(width_px=140, height_px=112)
    limits = PixelLimitsModel(min_pixels=448 * 448, max_pixels=448 * 448)
    crop = await zoom.crop(
        CropRequest(image=image, box=list(bbox_2d), frame="view", view=view, limits=limits)
    )
    shown = pixels(await zoom.crop_bytes(crop.crop)).astype(float)
    height, width = shown.shape[:2]
    center_x = shown[height // 2, width // 2, 0] * (WIDTH - 1) / 255
    center_y = shown[height // 2, width // 2, 1] * (HEIGHT - 1) / 255
    x1, y1, x2, y2 = bbox_2d
    assert center_x == pytest.approx((x1 + x2) / 2 * WIDTH / 140, abs=2.5)
    assert center_y == pytest.approx((y1 + y2) / 2 * HEIGHT / 112, abs=2.5)
    assert shown[0, 0, 0] * (WIDTH - 1) / 255 == pytest.approx(x1 * WIDTH / 140, abs=2.5)
    assert shown[-1, -1, 1] * (HEIGHT - 1) / 255 == pytest.approx(y2 * HEIGHT / 112, abs=2.5)
