"""A sheet of phantoms to look at: view, original with the lesion marked, enlarged crop."""

from collections.abc import Iterable

from PIL import Image, ImageDraw

from services.problems.phantoms import OPTIONS, Phantom
from shared.geometry import Box, ImageSize, PixelLimits
from shared.render import show_region

VIEW_PX = 168
_LIMITS = PixelLimits(min_pixels=VIEW_PX**2, max_pixels=VIEW_PX**2)
_CROP_PX = 84
_GAP_PX = 4
_COLUMNS = 6
_MARK = (255, 60, 60)


def _crop_box(phantom: Phantom) -> Box:
    """A box of the size the tiny policy zooms to, around the lesion, inside the image."""
    width, height = phantom.image.size
    left = min(max(0, phantom.lesion.x - _CROP_PX // 2), width - _CROP_PX)
    top = min(max(0, phantom.lesion.y - _CROP_PX // 2), height - _CROP_PX)
    return Box(left, top, left + _CROP_PX, top + _CROP_PX)


def _tile(phantom: Phantom) -> Image.Image:
    """View and crop side by side, below them the original with the true box, and its kind."""
    width, height = phantom.image.size
    tile = Image.new("RGB", (width, VIEW_PX + height), "black")
    whole = Box.whole(ImageSize(width, height))
    tile.paste(show_region(phantom.image, whole, _LIMITS), (0, 0))
    tile.paste(show_region(phantom.image, _crop_box(phantom), _LIMITS), (VIEW_PX, 0))
    marked = phantom.image.copy()
    pen = ImageDraw.Draw(marked)
    pen.rectangle(phantom.box.as_tuple(), outline=_MARK)
    pen.text((4, 4), f"{phantom.problem_id}: {OPTIONS[phantom.lesion.kind]}", fill=_MARK)
    tile.paste(marked, (0, VIEW_PX))
    return tile


def contact_sheet(phantoms: Iterable[Phantom]) -> Image.Image:
    """All phantoms, six in a row."""
    tiles = [_tile(phantom) for phantom in phantoms]
    rows = -(-len(tiles) // _COLUMNS)
    width, height = (side + _GAP_PX for side in tiles[0].size)
    sheet = Image.new("RGB", (_COLUMNS * width, rows * height), "white")
    for index, tile in enumerate(tiles):
        sheet.paste(tile, (index % _COLUMNS * width, index // _COLUMNS * height))
    return sheet
