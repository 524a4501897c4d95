"""Wire models of the zoom service."""

from typing import Annotated, Literal

from pydantic import Field

from shared.api.base import SHA256_PATTERN, WireModel
from shared.api.headers import FileFacts


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


SourceFormat = Literal["png", "jpeg", "webp", "tiff", "dicom", "nifti"]
Axis = Literal["sagittal", "coronal", "axial"]
"""What a slice is perpendicular to: the patient's left-right, back-front or feet-head line."""
WindowPreset = Literal[
    "lung",
    "mediastinum",
    "soft_tissue",
    "abdomen",
    "liver",
    "bone",
    "brain",
    "subdural",
    "stroke",
]
WindowChoice = WindowPreset | Literal["ct_rgb"]
"""A usual window by name, or three of them as red, green and blue."""
WindowFunction = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]
"""DICOM's VOI LUT functions (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
GreyMapping = Literal["none", "requested_window", "file_window", "file_voi_lut", "value_range"]
"""How grey values became levels: they were levels or colours; a window that was asked for; the
file's first window (NIfTI: its display range); the file's first VOI LUT; least value to black,
greatest to white."""
NO_GREY_LEVELS = "no_grey_levels"
"""The `reason` of the problem that answers a window asked for of an image without grey levels."""
MAX_INDEX = 2**31 - 1
MAX_WINDOW = 1e9
"""Of centre and width, either way."""
MAX_BLANK_RECTANGLES = 1024


class RenderingRequest(WireModel):
    """Which picture of a file, and how its greys are shown.

    All may be left out where the file holds one picture.
    """

    frame: int | None = Field(default=None, ge=1, le=MAX_INDEX)
    """Of a multi-frame DICOM file or a NIfTI time series; the first is 1, as DICOM counts."""
    axis: Axis | None = None
    """NIfTI: which way to slice."""
    index: int | None = Field(default=None, ge=0, le=MAX_INDEX)
    """NIfTI: the slice, as NIfTI counts from 0, towards the patient's right, front or head."""
    window: WindowChoice | None = None
    """For CT."""
    window_center: float | None = Field(default=None, ge=-MAX_WINDOW, le=MAX_WINDOW)
    """With `window_width`, instead of `window`: in units after rescaling (CT: HU)."""
    window_width: float | None = Field(default=None, gt=0, le=MAX_WINDOW)


class IngestQuery(RenderingRequest):
    """Query of `POST /v1/images`."""

    identity: bool = False
    """Whether the answer shall say whom a DICOM file shows: for the keeper of the pseudonyms."""


class AppliedWindow(WireModel):
    """A window that made levels of grey values."""

    center: float
    width: float
    function: WindowFunction
    preset: str | None = None
    """The name by which it was asked for; of `ct_rgb`, the channel's."""


class AppliedRendering(WireModel):
    """What was done to make the picture, whether it was asked for or not."""

    frame: int
    num_frames: int
    axis: Axis | None = None
    index: int | None = None
    num_slices: int | None = None
    """NIfTI: slices along `axis`."""
    orientation: Literal["AS", "RS", "RA"] | None = None
    """NIfTI: the patient's direction at the left and at the top edge; R is the patient's right."""
    grey_mapping: GreyMapping
    windows: list[AppliedWindow]
    """None, one, or three: those of red, green and blue."""


class IngestResponse(FileFacts):
    """`POST /v1/images` (body: the file's bytes): the content-addressed original."""

    image: str = Field(pattern=SHA256_PATTERN)
    """sha256 of the canonical original (PNG, RGB or grey, no metadata)."""
    width_px: int
    height_px: int
    source_format: SourceFormat
    window_center: float | None = None
    """The window applied to the grey levels, where it was one."""
    window_width: float | None = None
    preprocessing_version: str
    """Changes whenever the same file and query may give other pixels; part of provenance."""
    rendering: AppliedRendering
    grey: str | None = Field(default=None, pattern=SHA256_PATTERN)
    """sha256 of the grey levels kept beside the original, which a crop's `window` shows; null
    where the file has none (colours, and files other than DICOM and NIfTI)."""


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


class WireWindow(WireModel):
    """A grey-level window, in units after rescaling (CT: HU)."""

    center: float = Field(ge=-MAX_WINDOW, le=MAX_WINDOW)
    width: float = Field(gt=0, le=MAX_WINDOW)


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
    window: WireWindow | None = None
    """Show the file's grey levels in this window instead of the one of its ingest; 422 with the
    `reason` `no_grey_levels` where none were kept (`IngestResponse.grey`)."""


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


class BlankRequest(WireModel):
    """`POST /v1/blanks`: an original without a region, to see what is concluded without it."""

    image: str = Field(pattern=SHA256_PATTERN)
    rectangles: list[WireBox] = Field(min_length=1, max_length=MAX_BLANK_RECTANGLES)
    """The region: their union."""


class BlankResponse(WireModel):
    """A new original, by hash: the region is filled from its border, all else is as it was."""

    image: str = Field(pattern=SHA256_PATTERN)
    width_px: int
    height_px: int
    blanked_px: int
    """Area of the region."""
