"""Sample values of any depth to 8-bit levels. Arrays are HW (grey) or HWC (colour)."""

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.integer | np.floating]
Levels = npt.NDArray[np.uint8]


def scale_to_levels(samples: Samples, low: float, high: float) -> Levels:
    """`low` to 0, `high` to 255, linear between, clipped, rounded half to even.

    All 0 where the two are equal. `high` may be the lesser number: the range of a DICOM window is
    turned around where the slope is negative.
    """
    if high == low:
        return np.zeros(samples.shape, dtype=np.uint8)
    scaled = (samples.astype(np.float64) - low) * (255.0 / (high - low))
    return np.rint(np.clip(scaled, 0.0, 255.0)).astype(np.uint8)


def exact_levels(values: Samples, center: float, width: float) -> Levels:
    """A window whose ends are exactly center ± width/2; what is no number is black."""
    low, high = center - width / 2, center + width / 2
    return scale_to_levels(np.where(np.isnan(values), low, values), low, high)


def stretch_to_levels(samples: Samples, is_counted: npt.NDArray[np.bool_] | None = None) -> Levels:
    """Least value to 0, greatest to 255: for greys that say nothing of how to show them.

    `is_counted` marks the samples that take part in finding the two; the others are clipped.
    Values that are not finite count as the least.
    """
    finite = np.isfinite(samples)
    counted = finite if is_counted is None else finite & is_counted
    if not counted.any():
        return np.zeros(samples.shape, dtype=np.uint8)
    low, high = float(samples[counted].min()), float(samples[counted].max())
    return scale_to_levels(np.where(finite, samples, low), low, high)
