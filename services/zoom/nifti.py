"""A slice of a NIfTI volume to the canonical original; runs in the decoder child.

nibabel reads the header and works out the orientation; the voxels are viewed where they lie, so
that no more than the slice is copied. What the header claims is checked before anything of that
size is inflated, and no more is inflated than it claims.

Slices are shown upright as radiologists hang them: head up, or front up where one looks along
the body; the patient's right, or front, on the left. An oblique volume is taken along the nearest
axes; one that does not say which way round it lies is refused. Voxels are shown as squares.
"""

import gzip
import io
import math
import zlib
from typing import IO, cast, get_args

import msgspec
import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.orientations import apply_orientation, io_orientation
from nibabel.volumeutils import apply_read_scaling
from PIL import Image

from services.zoom.formats import (
    GZIP_MAGIC,
    MAX_SAMPLE_BYTES,
    CanonicalOriginal,
    Rendering,
    Shown,
    Window,
    check_size,
    choose_frame,
    is_nifti,
    too_large,
    unreadable,
    unsupported,
)
from services.zoom.greys import Levels, Samples, exact_levels, stretch_to_levels
from services.zoom.kept import keep_nifti
from services.zoom.rasters import canonical
from shared.api.zoom import Axis, GreyMapping

_HEADER_BYTES = 540
_CHUNK_BYTES = 2**20
_MOST_BEHIND_BYTES = 2**16
"""Inflated data may go on for this much behind the voxels."""
_AXES: tuple[Axis, ...] = get_args(Axis)
"""Of x, y and z, which point to the patient's right, front and head."""


class Volume(msgspec.Struct, frozen=True):
    """What a header says of the voxels, checked."""

    dtype: np.dtype
    shape: tuple[int, int, int, int]
    """Along the axes of the file, then frames."""
    voxels_at: int
    """Byte offset."""
    slope: float | None
    intercept: float | None
    display_range: tuple[float, float] | None
    orientation: npt.NDArray[np.floating]
    """nibabel's: for each axis of the file, which of x, y, z it runs along, and 1 or -1."""

    @property
    def num_bytes(self) -> int:
        """Of the file, up to the last voxel."""
        return self.voxels_at + math.prod(self.shape) * self.dtype.itemsize

    def num_slices(self, axis: Axis) -> int:
        """Along x, y or z."""
        along = cast(list[int], self.orientation[:, 0].astype(int).tolist())
        return self.shape[along.index(_AXES.index(axis))]


def decode_nifti(data: bytes, rendering: Rendering, max_pixels: int) -> CanonicalOriginal:
    """Decode the slice asked for. Raises `ApiProblem` naming what was wrong."""
    is_packed = data.startswith(GZIP_MAGIC)
    file = gzip.GzipFile(fileobj=io.BytesIO(data)) if is_packed else io.BytesIO(data)
    try:
        head = file.read(_HEADER_BYTES)
        volume = read_header(head)
        shown = _chosen(volume, rendering)
        sides = [volume.num_slices(axis) for axis in _AXES if axis != shown.axis]
        check_size(sides[0], sides[1], max_pixels)
        if volume.num_bytes > max_pixels * MAX_SAMPLE_BYTES:
            raise too_large(
                f"the NIfTI header speaks of {volume.num_bytes} bytes, "
                f"at most {max_pixels * MAX_SAMPLE_BYTES} are accepted"
            )
        content = _read(cast(IO[bytes], file), head, volume.num_bytes) if is_packed else data
    except (zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise unreadable("the gzip data is damaged or cut off") from error
    if len(content) < volume.num_bytes:
        raise unreadable(
            f"the NIfTI header speaks of {volume.num_bytes} bytes, the file ends after "
            f"{len(content)}"
        )
    stored = _slice(volume, content, shown)
    values = apply_read_scaling(stored, volume.slope, volume.intercept)
    levels, mapping, windows = _levels(values, volume, rendering.windows)
    shown = msgspec.structs.replace(shown, grey_mapping=mapping, windows=windows)
    greys = keep_nifti(stored, volume.slope, volume.intercept)
    return canonical(Image.fromarray(levels), "nifti", shown, greys=greys)


def read_header(head: bytes) -> Volume:
    """The header at the start of a file. Raises `ApiProblem`."""
    if not is_nifti(head):
        raise unsupported("the gzip data holds no NIfTI volume; .nii and .nii.gz are accepted")
    is_second = head[4:7] in (b"n+2", b"ni2")
    magic = head[4:7] if is_second else head[344:347]
    if magic in (b"ni1", b"ni2"):
        raise unsupported(
            "this is the header of a NIfTI volume in two files; single files (.nii, .nii.gz) "
            "are accepted"
        )
    kind = Nifti2Header if is_second else Nifti1Header
    try:
        header = kind(head[: kind.template_dtype.itemsize])
        sizes = [int(size) for size in header.get_data_shape()]
        dtype = header.get_data_dtype()
        has_orientation = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
        orientation = io_orientation(header.get_best_affine())
        slope, intercept = header.get_slope_inter()
        low, high = float(header["cal_min"]), float(header["cal_max"])
        voxels_at = int(header.get_data_offset())
    except Exception as error:  # a header's message may quote the patient
        raise unreadable(f"the NIfTI header cannot be read ({type(error).__name__})") from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise unreadable(
            "the voxels are no plain numbers; integers and floats of up to 64 bits are accepted"
        )
    if not has_orientation or not np.isfinite(orientation).all():
        raise unreadable(
            "the NIfTI header does not say how the volume lies in the patient (sform, qform)"
        )
    has_range = math.isfinite(low) and math.isfinite(high) and high > low
    return Volume(
        dtype=dtype,
        shape=_shape(sizes),
        voxels_at=voxels_at,
        slope=slope,
        intercept=intercept,
        display_range=(low, high) if has_range else None,
        orientation=orientation,
    )


def _shape(sizes: list[int]) -> tuple[int, int, int, int]:
    x, y, z, num_frames, *further = [*sizes, 1, 1, 1, 1][: max(4, len(sizes))]
    if min(sizes, default=0) < 1 or any(size != 1 for size in further):
        shape = "x".join(str(size) for size in sizes)
        raise unreadable(f"the volume is {shape} voxels; three axes and frames are accepted")
    return x, y, z, num_frames


def _chosen(volume: Volume, rendering: Rendering) -> Shown:
    """The slice asked for. Raises `ApiProblem` 422 with what is accepted."""
    frame = choose_frame(rendering.frame, volume.shape[3], "the NIfTI file")
    if rendering.axis is None:
        ranges = ", ".join(f"{a} (index=0 to index={volume.num_slices(a) - 1})" for a in _AXES)
        raise unreadable(f"axis is missing, which a NIfTI file needs; accepted: {ranges}")
    num_slices = volume.num_slices(rendering.axis)
    if rendering.index is None or rendering.index >= num_slices:
        fault = "is missing" if rendering.index is None else f"{rendering.index} is out of range"
        raise unreadable(
            f"index {fault}; the NIfTI file has {num_slices} {rendering.axis} slices: "
            f"index=0 to index={num_slices - 1} is accepted"
        )
    return Shown(
        frame=frame,
        num_frames=volume.shape[3],
        axis=rendering.axis,
        index=rendering.index,
        num_slices=num_slices,
    )


def _read(file: IO[bytes], head: bytes, num_bytes: int) -> bytearray:
    """As much as the header claims, inflated. Raises `ApiProblem` 413 if there is much more."""
    content = bytearray(num_bytes)
    content[: len(head)] = head[:num_bytes]
    at = min(len(head), num_bytes)
    while chunk := file.read(min(_CHUNK_BYTES, num_bytes - at)):
        content[at : at + len(chunk)] = chunk
        at += len(chunk)
    if len(file.read(_MOST_BEHIND_BYTES + 1)) > _MOST_BEHIND_BYTES:
        raise too_large(
            f"the gzip data inflates to more than the {num_bytes} bytes its NIfTI header speaks of"
        )
    del content[at:]
    return content


def _slice(volume: Volume, content: bytes | bytearray, shown: Shown) -> Samples:
    """[row, column] from the upper left, as stored."""
    stored = np.frombuffer(
        content, volume.dtype, count=math.prod(volume.shape), offset=volume.voxels_at
    )
    frame = stored.reshape(volume.shape, order="F")[..., shown.frame - 1]
    voxels_xyz = apply_orientation(frame, volume.orientation)
    axis = _AXES.index(cast(Axis, shown.axis))
    upright = np.moveaxis(voxels_xyz, axis, 0)[cast(int, shown.index), ::-1, ::-1].T
    return np.ascontiguousarray(upright)


def _levels(
    values: Samples, volume: Volume, asked: tuple[Window, ...]
) -> tuple[Levels, GreyMapping, tuple[Window, ...]]:
    """Levels, HW or HWC; how they were made; and the windows, which end exactly at c ± w/2."""
    if asked:
        windows = tuple(msgspec.structs.replace(w, function="LINEAR_EXACT") for w in asked)
        channels = [exact_levels(values, window.center, window.width) for window in windows]
        levels = channels[0] if len(channels) == 1 else np.stack(channels, axis=-1)
        return levels, "requested_window", windows
    if volume.display_range is not None:
        low, high = volume.display_range
        window = Window((low + high) / 2, high - low, "LINEAR_EXACT")
        return exact_levels(values, window.center, window.width), "file_window", (window,)
    return stretch_to_levels(values), "value_range", ()
