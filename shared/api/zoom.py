"""Wire models of the zoom service."""

from typing import Annotated, Literal

from pydantic import Field

from shared.api.base import SHA256_PATTERN, WireModel


class WireImageSize(WireModel):
    """Width and height in pixels."""

    width_px: int = Field(ge=1)
    height_px: int = Field(ge=1)


class WireBox(WireModel):
    """Half-open rectangle in original-image pixels."""

    x1: int
    y1: int
    x2: int
    y2: int


class IngestResponse(WireModel):
    """`POST /v1/images` (body: the file's bytes): the content-addressed original."""

    image: str = Field(pattern=SHA256_PATTERN)
    """sha256 of the canonical original (PNG, RGB or grey, no metadata)."""
    width_px: int
    height_px: int
    source_format: Literal["png", "jpeg", "webp", "tiff", "dicom"]
    window_center: float | None = None
    """DICOM: the window applied to the grey levels, as stored in the file."""
    window_width: float | None = None


class ImageFacts(WireModel):
    """`GET /v1/images/{image}/facts`: what an ingested original is."""

    image: str = Field(pattern=SHA256_PATTERN)
    width_px: int
    height_px: int
    mode: Literal["RGB", "L"]
    """Colour or 8-bit grey."""
    num_bytes: int
    """Of the PNG."""


class PixelLimitsModel(WireModel):
    """Least and most pixels of the shown image."""

    min_pixels: int = Field(ge=28 * 28)
    max_pixels: int = Field(le=64_000_000)


Coordinates = Annotated[list[float], Field(min_length=4, max_length=4)]


class CropRequest(WireModel):
    """`POST /v1/crops`: a box of an original, rendered as the model is shown it.

    `box` is in pixels of `frame`: the original, or the model's view of it (`view` gives the
    view's size then). No box: the whole image (that is how the view itself is rendered).
    """

    image: str = Field(pattern=SHA256_PATTERN)
    box: Coordinates | None = None
    frame: Literal["original", "view"] = "original"
    view: WireImageSize | None = None
    limits: PixelLimitsModel
    min_side_px: int = Field(default=28, ge=1)


class CropResponse(WireModel):
    """The crop, by hash; its bytes are in the blob store and at `GET /v1/crops/{crop}`."""

    crop: str = Field(pattern=SHA256_PATTERN)
    box: WireBox
    """As cropped: clamped, rounded outwards, grown to the least side."""
    shown_width_px: int
    shown_height_px: int
    image_width_px: int
    """Of the original."""
    image_height_px: int
