"""From a crop request to the box that is cropped and the PNG that is shown."""

from http import HTTPStatus

from PIL import Image

from shared.api.zoom import CropRequest, CropResponse, WireBox
from shared.blobs import BlobStore
from shared.errors import ApiProblem
from shared.geometry import Box, ImageSize, PixelLimits, place_box, smart_resize, view_to_original
from shared.render import encode_png, show_region


def check_request(request: CropRequest, max_pixels: int) -> None:
    """What the types cannot say. Raises `ApiProblem` 422 naming the field."""
    if request.frame == "view" and request.view is None:
        raise _invalid("view: the size of the view is needed when frame is 'view'")
    if request.limits.min_pixels > request.limits.max_pixels:
        raise _invalid("limits: min_pixels must not be over max_pixels")
    if request.limits.min_pixels > max_pixels:
        raise _invalid(f"limits: crops of at most {max_pixels} pixels are rendered")


def _invalid(detail: str) -> ApiProblem:
    return ApiProblem(HTTPStatus.UNPROCESSABLE_ENTITY, "Request does not validate", detail)


def place(request: CropRequest, original: ImageSize) -> Box:
    """The box as cropped, in original pixels. Raises `BadBox`."""
    if request.box is None:
        return Box.whole(original)
    x1, y1, x2, y2 = request.box
    corners = (x1, y1, x2, y2)
    if request.frame == "view" and request.view is not None:
        view = ImageSize(request.view.width_px, request.view.height_px)
        corners = view_to_original(corners, view, original)
    return place_box(corners, original, request.min_side_px)


def render(
    request: CropRequest, original: Image.Image, blobs: BlobStore, max_pixels: int
) -> CropResponse:
    """Crop, resize, encode and store; the same request always gives the same bytes.

    Raises `BadBox` for a box that cannot be cropped, `ApiProblem` 422 for too large a crop.
    """
    image_size = ImageSize(original.width, original.height)
    box = place(request, image_size)
    limits = PixelLimits(request.limits.min_pixels, request.limits.max_pixels)
    shown = smart_resize(ImageSize(box.width_px, box.height_px), limits)
    if shown.num_pixels > max_pixels:
        raise _invalid(
            f"limits: the crop would be {shown.width_px}x{shown.height_px} px, "
            f"at most {max_pixels} pixels are rendered"
        )
    crop = blobs.put(encode_png(show_region(original, box, limits)))
    return CropResponse(
        crop=crop,
        box=WireBox(x1=box.x1, y1=box.y1, x2=box.x2, y2=box.y2),
        shown_width_px=shown.width_px,
        shown_height_px=shown.height_px,
        image_width_px=image_size.width_px,
        image_height_px=image_size.height_px,
    )
