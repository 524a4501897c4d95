"""Stored grey values to 8-bit levels: modality LUT, then VOI LUT or window, by pydicom.

A window that is asked for takes the place of the file's, and its function: LINEAR where the file
names none. Every step maps one value to one value, so it is worked out once per value that occurs
and looked up for the pixels: the same result, without float images many times the size of the file.
"""

from collections.abc import Callable
from functools import partial
from typing import cast, get_args

import msgspec
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi, apply_windowing

from services.zoom.formats import Window
from services.zoom.greys import Levels, Samples, scale_to_levels, stretch_to_levels
from shared.api.zoom import GreyMapping, WindowFunction

_FAR = 1e30
"""A value beyond every window."""


def grey_levels(
    dataset: Dataset, stored: Samples, asked: tuple[Window, ...] = ()
) -> tuple[Levels, GreyMapping, tuple[Window, ...]]:
    """Levels 0…255, larger values brighter, HW, or HWC of three windows; and how they were made."""
    if asked:
        windows = tuple(_in_function_of(dataset, window) for window in asked)
        channels = [_by_value(stored, partial(_windowed, dataset, window)) for window in windows]
        levels = channels[0] if len(channels) == 1 else np.stack(channels, axis=-1)
        return levels, "requested_window", windows
    lut = _voi_lut(dataset)
    if lut is not None:
        return _by_value(stored, partial(_looked_up, dataset, lut)), "file_voi_lut", ()
    window = _window(dataset)
    if window is not None:
        return _by_value(stored, partial(_windowed, dataset, window)), "file_window", (window,)
    return _by_value(stored, partial(_stretched, dataset)), "value_range", ()


def _windowed(dataset: Dataset, window: Window, stored: Samples) -> Levels:
    dataset.WindowCenter, dataset.WindowWidth = window.center, window.width
    dataset.VOILUTFunction = window.function
    physical = apply_modality_lut(stored, dataset)
    with np.errstate(over="ignore"):  # the sigmoid far from its centre
        low, high = apply_windowing(np.array([-_FAR, _FAR]), dataset)
        return scale_to_levels(apply_windowing(physical, dataset), low, high)


def _stretched(dataset: Dataset, stored: Samples) -> Levels:
    physical = apply_modality_lut(stored, dataset)
    is_counted = ~np.broadcast_to(_is_padding(dataset, stored), physical.shape)
    return stretch_to_levels(physical, is_counted)


def _is_padding(dataset: Dataset, stored: Samples) -> npt.NDArray[np.bool_] | np.bool_:
    """Which stored values stand for no measurement: one, or all between two."""
    try:
        ends = [_first(dataset.get("PixelPaddingValue"))]
    except (TypeError, ValueError):
        return np.bool_(False)
    if dataset.get("PixelPaddingRangeLimit") is not None:
        ends.append(_first(dataset.get("PixelPaddingRangeLimit")))
    return (stored >= min(ends)) & (stored <= max(ends))


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


def _looked_up(dataset: Dataset, lut: Dataset, stored: Samples) -> Levels:
    """Through the VOI LUT, its full range of entries to 0…255."""
    physical = apply_modality_lut(stored, dataset)
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
    function = _function(dataset)
    if function is None or not np.isfinite(center):
        return None
    is_wide_enough = width >= 1 if function == "LINEAR" else width > 0
    return Window(center, width, function) if is_wide_enough else None


def _function(dataset: Dataset) -> WindowFunction | None:
    """How the file's windows are to be read; None if it names what there is not."""
    function = str(dataset.get("VOILUTFunction") or "LINEAR")
    return cast(WindowFunction, function) if function in get_args(WindowFunction) else None


def _in_function_of(dataset: Dataset, window: Window) -> Window:
    """LINEAR is not defined for widths under 1; LINEAR_EXACT is what it means there."""
    function = _function(dataset) or "LINEAR"
    is_too_narrow = function == "LINEAR" and window.width < 1
    return msgspec.structs.replace(window, function="LINEAR_EXACT" if is_too_narrow else function)


def _first(element: object) -> float:
    """First value of a multi-valued number. Raises `TypeError` or `ValueError` if there is none."""
    if isinstance(element, (str, int, float)):
        return float(element)
    values = cast("list[object]", element)
    if not values:
        raise ValueError("no value")
    return float(cast(str, values[0]))
