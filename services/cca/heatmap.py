"""C(u, v) as a picture for viewers: the only place where a region is rasterised."""

import base64

import numpy as np
import numpy.typing as npt
from PIL import Image

from services.cca.consensus import Consensus
from shared.api.cca import Heatmap
from shared.geometry import ImageSize
from shared.render import encode_png

MAX_SIDE_PX = 512


def draw_heatmap(consensus: Consensus, image: ImageSize) -> Heatmap:
    """Mean count per heatmap pixel, scaled so that |T⁺| is 255; at most 512 px a side."""
    scale = min(1.0, MAX_SIDE_PX / max(image.width_px, image.height_px))
    width_px = max(1, round(image.width_px * scale))
    height_px = max(1, round(image.height_px * scale))
    means = np.zeros((height_px, width_px))
    if consensus.counts.size:
        rows = _overlaps(consensus.grid.ys, image.height_px, height_px)
        columns = _overlaps(consensus.grid.xs, image.width_px, width_px)
        means = rows @ consensus.counts @ columns.T
    most = max(1, consensus.num_agreeing)
    levels = np.rint(means * (255.0 / most)).astype(np.uint8)
    png = encode_png(Image.fromarray(levels))
    return Heatmap(
        png_base64=base64.b64encode(png).decode("ascii"),
        max_count=int(consensus.counts.max(initial=0)),
        width_px=width_px,
        height_px=height_px,
    )


def _overlaps(
    lines: npt.NDArray[np.int64], extent_px: int, num_bins: int
) -> npt.NDArray[np.float64]:
    """Share of each of `num_bins` equal parts of [0, extent) that each grid interval covers."""
    edges = np.linspace(0.0, extent_px, num_bins + 1)
    low = np.maximum(edges[:-1, None], lines[None, :-1])
    high = np.minimum(edges[1:, None], lines[None, 1:])
    return np.clip(high - low, 0.0, None) * (num_bins / extent_px)
