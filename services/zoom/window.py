"""Stored grey values to 8-bit levels: modality LUT, then VOI LUT or window, by pydicom.

Every step maps one value to one value, so it is worked out once per value that occurs and looked
up for the pixels: the same result, without float images many times the size of the file.
"""

from collections.abc import Callable
from typing import cast

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi, apply_windowing

from services.zoom.greys import Levels, Samples, scale_to_levels, stretch_to_levels

Window = tuple[float, float]
"""(center, width), in units after the modality LUT."""

_FAR = 1e30
"""A value beyond every window."""


def grey_levels(dataset: Dataset, stored: Samples) -> tuple[Levels, Window | None]:
    """Levels 0…255, larger values brighter, and the window if one was applied."""
    lut = _voi_lut(dataset)
    window = None if lut is not None else _window(dataset)

    def shown(values: Samples) -> Levels:
        is_padding = values == dataset.get("PixelPaddingValue")
        physical = apply_modality_lut(values, dataset)
        if lut is not None:
            return _looked_up(dataset, lut, physical)
        if window is not None:
            with np.errstate(over="ignore"):  # the sigmoid far from its centre
                low, high = apply_windowing(np.array([-_FAR, _FAR]), dataset)
                return scale_to_levels(apply_windowing(physical, dataset), low, high)
        return stretch_to_levels(physical, ~np.broadcast_to(is_padding, physical.shape))

    return _by_value(stored, shown), window


def _by_value(stored: Samples, shown: Callable[[Samples], Levels]) -> Levels:
    """`shown` of an image, worked out once per distinct value where they are few."""
    if not np.issubdtype(stored.dtype, np.integer):
        return shown(stored)
    low, high = int(stored.min()), int(stored.max())
    if high - low >= 2**16:
        return shown(stored.astype(np.int64))
    index = stored.astype(np.int64 if stored.dtype.itemsize > 2 else np.int32) - low
    occurs = np.zeros(high - low + 1, dtype=np.bool_)
    occurs[index] = True
    levels = np.zeros(occurs.shape, dtype=np.uint8)
    levels[occurs] = shown(np.flatnonzero(occurs) + low)
    return levels[index]


def _voi_lut(dataset: Dataset) -> Dataset | None:
    """The first VOI LUT, if it is whole."""
    items = dataset.get("VOILUTSequence")
    if not items:
        return None
    lut = cast(Dataset, items[0])
    is_whole = lut.get("LUTDescriptor") is not None and lut.get("LUTData") is not None
    return lut if is_whole else None


def _looked_up(dataset: Dataset, lut: Dataset, physical: Samples) -> Levels:
    """Through the VOI LUT, its full range of entries to 0…255."""
    num_entries, first, num_bits = (int(n) for n in lut.LUTDescriptor)
    last = first + (num_entries or 2**16) - 1
    lut.LUTDescriptor = [num_entries, first, 16]  # pydicom's index has as many bits as an entry
    index = np.clip(np.rint(physical), first, last).astype(np.int64)
    return scale_to_levels(apply_voi(index, dataset), 0.0, float(2**num_bits - 1))


def _window(dataset: Dataset) -> Window | None:
    """The first window, if it is one: finite numbers, and wide enough for its function."""
    try:
        center, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    except (TypeError, ValueError):
        return None
    function = str(dataset.get("VOILUTFunction") or "LINEAR")
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        return None
    is_wide_enough = width >= 1 if function == "LINEAR" else width > 0
    return (center, width) if np.isfinite(center) and is_wide_enough else None


def _first(element: object) -> float:
    """First value of a multi-valued number. Raises `TypeError` or `ValueError` if there is none."""
    if isinstance(element, (str, int, float)):
        return float(element)
    values = cast("list[object]", element)
    if not values:
        raise ValueError("no value")
    return float(cast(str, values[0]))
