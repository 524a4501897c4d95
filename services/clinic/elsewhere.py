"""Where else to blank: a region of the evidence's shape, placed by the case's seed. Pure.

The shape is moved as a whole, so that the same area with the same outline is lost; all places
inside the image that do not overlap the evidence are equally likely. A drawn place that does not
fit is drawn again, a fixed number of times: where there is hardly any room, none may be found.
A place without room is mostly told by its largest rectangles, so those are compared first: a
region of hundreds of rectangles would else take seconds.
"""

import random
from collections.abc import Sequence

from shared.geometry import Box, ImageSize

MAX_DRAWS = 2000


def place_elsewhere(region: Sequence[Box], size: ImageSize, seed: int) -> list[Box] | None:
    """The region moved to another place of the image; None if none was found."""
    x1, y1 = min(box.x1 for box in region), min(box.y1 for box in region)
    x2, y2 = max(box.x2 for box in region), max(box.y2 for box in region)
    largest_first = sorted(region, key=lambda box: box.area_px, reverse=True)
    draw = random.Random(f"elsewhere:{seed}")
    for _ in range(MAX_DRAWS):
        by_x = draw.randint(-x1, size.width_px - x2)
        by_y = draw.randint(-y1, size.height_px - y2)
        moved = (_moved(box, by_x, by_y) for box in largest_first)
        if not any(_overlap(first, second) for first in moved for second in largest_first):
            return [_moved(box, by_x, by_y) for box in region]
    return None


def _moved(box: Box, by_x: int, by_y: int) -> Box:
    return Box(box.x1 + by_x, box.y1 + by_y, box.x2 + by_x, box.y2 + by_y)


def _overlap(first: Box, second: Box) -> bool:
    return (
        first.x1 < second.x2
        and second.x1 < first.x2
        and first.y1 < second.y2
        and second.y1 < first.y2
    )
