"""The evidence of a case as one picture: the original with its boxes, the crops beside it.

Drawn are the zooms of the trajectory shown (solid, numbered), the consensus region (filled) and
the zooms of the others (thin), in the colours of the viewer. No word of question or answer is on
it, so that it may be passed on like the image itself.
"""

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

from shared.api.clinic import Case
from shared.api.zoom import WireBox

SIDE_PX = 768
"""Longer side of the original as drawn."""
_TILE_PX, _CAPTION_PX, _GAP_PX = 224, 28, 12
_ZOOM, _AGREED, _OTHER = (255, 197, 61), (53, 208, 165), (255, 255, 255)
_RIM, _PAPER, _INK = (0, 0, 0), (24, 30, 36), (235, 240, 244)
_FONT = ImageFont.load_default(size=16)


def evidence_picture(case: Case, original: bytes, crops: Sequence[bytes]) -> Image.Image:
    """The picture; `crops` are those of the case's evidence, in order."""
    stage = _stage(case, Image.open(io.BytesIO(original)).convert("RGB"))
    tiles = [
        _tile(Image.open(io.BytesIO(crop)).convert("RGB"), caption)
        for crop, caption in zip(crops, _captions(case), strict=True)
    ]
    per_column = max(1, (stage.height + _GAP_PX) // (_TILE_PX + _CAPTION_PX + _GAP_PX))
    num_columns = -(-len(tiles) // per_column)
    tall = min(len(tiles), per_column) * (_TILE_PX + _CAPTION_PX + _GAP_PX)
    footer = [case.notice, *_legend(case)]
    width = max(_GAP_PX + stage.width, 420) + num_columns * (_TILE_PX + _GAP_PX) + _GAP_PX
    body = max(stage.height, tall)
    page = Image.new("RGB", (width, body + 2 * _GAP_PX + _CAPTION_PX * len(footer)), _PAPER)
    page.paste(stage, (_GAP_PX, _GAP_PX))
    for index, tile in enumerate(tiles):
        column, row = divmod(index, per_column)
        left = width - (num_columns - column) * (_TILE_PX + _GAP_PX)
        page.paste(tile, (left, _GAP_PX + row * (tile.height + _GAP_PX)))
    draw = ImageDraw.Draw(page)
    for index, line in enumerate(footer):
        top = body + _GAP_PX + 6 + index * _CAPTION_PX
        draw.text((_GAP_PX, top), line, fill=_INK, font=_FONT)
    return page


def _captions(case: Case) -> list[str]:
    return [
        f"{zoom.index + 1}   entropy {zoom.entropy_increase_nats:+.2f} nats"
        for zoom in case.evidence
    ]


def _legend(case: Case) -> list[str]:
    lines = ["yellow: the zooms of the trajectory shown"] if case.evidence else []
    if case.consensus is not None and case.consensus.rectangles:
        lines.append(f"green: where most of the {case.consensus.num_agreeing} that agree looked")
    if any(a.boxes for a in case.attempts if a.trajectory_id != case.shown_trajectory_id):
        others = "all trajectories" if case.shown_trajectory_id is None else "the others"
        lines.append(f"white: the zooms of {others}")
    return lines


def _stage(case: Case, image: Image.Image) -> Image.Image:
    """The original with its boxes."""
    scale = SIDE_PX / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    stage = image.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)
    if case.consensus is not None and case.consensus.rectangles:
        tint = Image.new("RGB", size, _AGREED)
        mask = Image.new("L", size, 0)
        for box in case.consensus.rectangles:
            ImageDraw.Draw(mask).rectangle(_scaled(box, scale), fill=72)
        stage.paste(tint, mask=mask)
    draw = ImageDraw.Draw(stage)
    for attempt in case.attempts:
        if attempt.trajectory_id != case.shown_trajectory_id:
            for box in attempt.boxes:
                _frame(draw, _scaled(box, scale), _OTHER, width=1)
    for zoom in case.evidence:
        corners = _scaled(zoom.box, scale)
        _frame(draw, corners, _ZOOM, width=3)
        _number(draw, corners[:2], zoom.index + 1)
    return stage


def _scaled(box: WireBox, scale: float) -> tuple[int, int, int, int]:
    """First and last pixel, as Pillow draws rectangles."""
    left, top = round(box.x1 * scale), round(box.y1 * scale)
    return left, top, max(left, round(box.x2 * scale) - 1), max(top, round(box.y2 * scale) - 1)


def _frame(
    draw: ImageDraw.ImageDraw,
    corners: tuple[int, int, int, int],
    colour: tuple[int, int, int],
    *,
    width: int,
) -> None:
    """A rectangle with a dark rim, to be seen on bright and dark tissue alike."""
    left, top, right, bottom = corners
    outer = (left - 1, top - 1, right + 1, bottom + 1)
    draw.rectangle(outer, outline=_RIM, width=width + 2)
    draw.rectangle(corners, outline=colour, width=width)


def _number(draw: ImageDraw.ImageDraw, corner: tuple[int, int], number: int) -> None:
    left, top = max(0, corner[0] - 12), max(0, corner[1] - 12)
    draw.ellipse((left, top, left + 24, top + 24), fill=_ZOOM, outline=_RIM)
    draw.text((left + 12, top + 12), str(number), fill=_RIM, font=_FONT, anchor="mm")


def _tile(crop: Image.Image, caption: str) -> Image.Image:
    """A crop as it was shown, fitted into its place, over its caption."""
    tile = Image.new("RGB", (_TILE_PX, _TILE_PX + _CAPTION_PX), _PAPER)
    tile.paste(ImageOps.contain(crop, (_TILE_PX, _TILE_PX)))
    ImageDraw.Draw(tile).text((0, _TILE_PX + 4), caption, fill=_INK, font=_FONT)
    return tile
