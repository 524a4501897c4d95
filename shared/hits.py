"""When a zoom has hit the lesion: for measuring only, never for training.

Read by evaluation and by the live display of a training run. True lesions never reach a trainer
or a rollout worker.
"""

from collections.abc import Sequence

from shared.geometry import Box, ImageSize

LARGEST_HIT_SHARE = 9
"""A box counts only if it is no larger than one ninth of the image: a policy that zooms on
everything hits nothing."""


def is_hit(boxes: Sequence[Box], lesions: Sequence[Box], image: ImageSize) -> bool:
    """Whether a lesion's centre lies inside some box of at most a ninth of the image's area."""
    small = [b for b in boxes if b.area_px * LARGEST_HIT_SHARE <= image.num_pixels]
    return any(
        box.contains((lesion.x1 + lesion.x2) / 2, (lesion.y1 + lesion.y2) / 2)
        for lesion in lesions
        for box in small
    )
