"""Images of a prompt: from the blob store to pixels, bounded and never resized.

A blob's name is its content, so what was decoded once stays right for ever: a small cache holds
decoded images, because a rollout sends the same view with every turn of every trajectory.
"""

import asyncio
import io
from collections import OrderedDict
from http import HTTPStatus

from PIL import Image

from shared.blobs import BlobStore
from shared.errors import ApiProblem, BlobError
from shared.geometry import PATCH_FACTOR_PX, ImageSize, PixelLimits

Image.MAX_IMAGE_PIXELS = None  # our own limit is checked right after the header was read

_CACHE_BYTES = 256 * 2**20
_REFUSED = "Image cannot be shown"


def _refuse(detail: str) -> ApiProblem:
    return ApiProblem(HTTPStatus.UNPROCESSABLE_ENTITY, _REFUSED, detail)


def decode_shown_image(png: bytes, name: str, limits: PixelLimits) -> Image.Image:
    """RGB pixels of a PNG that the model can be shown as it is.

    Size and format are checked before any pixel is decoded. Raises `ApiProblem` (422) if it is
    no PNG, is damaged, has a side that is no multiple of 28 or lies outside the model's limits.
    """
    try:
        image = Image.open(io.BytesIO(png), formats=["PNG"])
    except Exception as error:
        raise _refuse(f"blob {name} is not a PNG image") from error
    size = ImageSize(*image.size)
    shape = f"blob {name} is {size.width_px}x{size.height_px} px"
    if size.width_px % PATCH_FACTOR_PX or size.height_px % PATCH_FACTOR_PX:
        raise _refuse(f"{shape}; both sides must be multiples of {PATCH_FACTOR_PX}")
    if not limits.min_pixels <= size.num_pixels <= limits.max_pixels:
        raise _refuse(f"{shape}; the model takes {limits.min_pixels} to {limits.max_pixels} pixels")
    if max(image.size) > 200 * min(image.size):
        raise _refuse(f"{shape}: too elongated (ratio over 200)")
    try:
        return image.convert("RGB")
    except Exception as error:
        raise _refuse(f"blob {name} is a damaged PNG") from error


class ImageLoader:
    """Decoded images by blob name; reading and decoding happen off the event loop."""

    def __init__(self, blobs: BlobStore, limits: PixelLimits) -> None:
        self._blobs = blobs
        self._limits = limits
        self._cache: OrderedDict[str, Image.Image] = OrderedDict()
        self._cached_bytes = 0

    async def load(self, name: str) -> Image.Image:
        """The image of a blob. Raises `ApiProblem`: 404 for an unknown blob, 422 as above."""
        image = self._cache.get(name)
        if image is not None:
            self._cache.move_to_end(name)
            return image
        image = await asyncio.to_thread(self._read, name)
        if name not in self._cache:
            self._cache[name] = image
            self._cached_bytes += _num_bytes(image)
        while self._cached_bytes > _CACHE_BYTES:
            self._cached_bytes -= _num_bytes(self._cache.popitem(last=False)[1])
        return image

    def _read(self, name: str) -> Image.Image:
        try:
            png = self._blobs.get(name)
        except BlobError as error:
            raise ApiProblem(HTTPStatus.NOT_FOUND, "Unknown image", str(error)) from error
        return decode_shown_image(png, name, self._limits)


def _num_bytes(image: Image.Image) -> int:
    return image.width * image.height * 3
