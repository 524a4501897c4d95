"""NIfTI: slices the right way up in every storage order, greys, and files that mean harm."""

import gzip
import re
import struct
from collections.abc import Callable
from itertools import permutations, product

import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Image, Nifti1Pair
from nibabel.nifti2 import Nifti2Image
from nibabel.orientations import apply_orientation, inv_ornt_aff

from services.zoom.formats import DecodeLimits, Rendering, Window, detect_format
from services.zoom.sandbox import Sandbox
from shared.api.zoom import AppliedRendering, AppliedWindow, RenderingRequest
from shared.clients.zoom import ZoomClient
from shared.errors import ApiProblem, ZoomError
from tests.zoom.files import RAS, gzip_bomb, nifti_claiming, nifti_of

Pixels = Callable[[bytes], np.ndarray]

PLAIN = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6) * 2
"""[x, y, z]: towards the patient's right, front and head."""
WHOLE = Window(127.5, 255)
"""Leaves values of eight bits as they are."""
AXIAL_2 = Rendering(axis="axial", index=2, windows=(WHOLE,))


def marked(x: int, y: int, z: int) -> np.ndarray:
    """One bright voxel."""
    voxels = np.zeros((4, 5, 6), np.uint8)
    voxels[x, y, z] = 255
    return voxels


def shown(sandbox: Sandbox, data: bytes, rendering: Rendering, pixels: Pixels) -> np.ndarray:
    return pixels(sandbox.decode(data, detect_format(data), rendering).png)


@pytest.mark.parametrize(
    ("axis", "index", "row", "column"),
    [
        ("axial", 5, 0, 0),  # front at the top, the patient's right on the left
        ("coronal", 4, 0, 0),  # head at the top, the patient's right on the left
        ("sagittal", 3, 0, 0),  # head at the top, front on the left
    ],
)
def test_the_voxel_at_the_right_front_and_head_is_at_the_upper_left(
    sandbox: Sandbox, pixels: Pixels, axis: str, index: int, row: int, column: int
) -> None:
    rendering = Rendering(axis=axis, index=index, windows=(WHOLE,))
    levels = shown(sandbox, nifti_of(marked(3, 4, 5)), rendering, pixels)
    assert np.argwhere(levels == 255).tolist() == [[row, column]]


@pytest.mark.parametrize(
    ("axis", "index", "expected"),
    [
        ("axial", 2, PLAIN[::-1, ::-1, 2].T),
        ("coronal", 1, PLAIN[::-1, 1, ::-1].T),
        ("sagittal", 3, PLAIN[3, ::-1, ::-1].T),
    ],
)
def test_every_storage_order_gives_the_same_slices(
    sandbox: Sandbox, pixels: Pixels, axis: str, index: int, expected: np.ndarray
) -> None:
    rendering = Rendering(axis=axis, index=index, windows=(WHOLE,))
    for order, flips in product(permutations(range(3)), product((1, -1), repeat=3)):
        stored_as = np.array(list(zip(order, flips, strict=True)))
        stored = apply_orientation(PLAIN, stored_as)
        affine = RAS @ inv_ornt_aff(stored_as, PLAIN.shape)
        levels = shown(sandbox, nifti_of(stored, affine), rendering, pixels)
        assert np.array_equal(levels, expected), (order, flips)


def test_an_oblique_volume_is_taken_along_the_nearest_axes(
    sandbox: Sandbox, pixels: Pixels
) -> None:
    turn = np.deg2rad(20)
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    levels = shown(sandbox, nifti_of(PLAIN, rotation @ RAS), AXIAL_2, pixels)
    assert np.array_equal(levels, PLAIN[::-1, ::-1, 2].T)


def test_packed_big_endian_and_version_2_files_are_one_original(sandbox: Sandbox) -> None:
    voxels = PLAIN.astype(np.int16)
    little = nifti_of(voxels)
    big = Nifti1Image(voxels, RAS, Nifti1Image.header_class(endianness=">"))
    files = [
        little,
        gzip.compress(little, mtime=0),
        gzip.compress(little[:1000], mtime=0) + gzip.compress(little[1000:]),
        big.to_bytes(),
        Nifti2Image(voxels, RAS).to_bytes(),
        gzip.compress(Nifti2Image(voxels, RAS).to_bytes()),
    ]
    pngs = {sandbox.decode(data, detect_format(data), AXIAL_2).png for data in files}
    assert len(pngs) == 1


async def test_a_window_is_applied_after_the_rescale(zoom: ZoomClient, pixels: Pixels) -> None:
    """The brain's: 0…80 HU to 0…255."""
    voxels = np.array([[[4], [24], [44], [64], [500]]], np.int16).transpose(1, 2, 0)
    data = nifti_of(voxels, scl_slope=2.0, scl_inter=-28.0)  # -20, 20, 60, 100, 972 HU
    query = RenderingRequest(axis="axial", index=0, window="brain")
    answer = await zoom.ingest(data, rendering=query)
    levels = pixels(await zoom.image_bytes(answer.image))
    assert levels.tolist() == [[255, 255, 191, 64, 0]]  # the patient's right is on the left
    assert answer.source_format == "nifti"
    assert answer.rendering == AppliedRendering(
        frame=1,
        num_frames=1,
        axis="axial",
        index=0,
        num_slices=1,
        orientation="RA",
        grey_mapping="requested_window",
        windows=[AppliedWindow(center=40, width=80, function="LINEAR_EXACT", preset="brain")],
    )
    colours = await zoom.ingest(data, rendering=query.model_copy(update={"window": "ct_rgb"}))
    shown_colours = pixels(await zoom.image_bytes(colours.image))
    assert shown_colours[0, 3].tolist() == [130, 113, 64]  # 20 HU


def test_without_a_request_the_files_range_is_shown_else_that_of_the_slice(
    sandbox: Sandbox, pixels: Pixels
) -> None:
    voxels = np.array([0.0, 0.25, 0.5, np.nan], np.float32).reshape(4, 1, 1)
    asked = Rendering(axis="axial", index=0)
    data = nifti_of(voxels, cal_min=0.0, cal_max=1.0)
    ranged = sandbox.decode(data, "nifti", asked)
    assert pixels(ranged.png).tolist() == [[0, 128, 64, 0]]
    assert ranged.shown.windows == (Window(0.5, 1.0, "LINEAR_EXACT"),)
    stretched = sandbox.decode(nifti_of(voxels), "nifti", asked)
    assert pixels(stretched.png).tolist() == [[0, 255, 128, 0]]
    assert (stretched.shown.grey_mapping, stretched.shown.windows) == ("value_range", ())


def test_a_time_series_is_shown_by_its_frames(sandbox: Sandbox, pixels: Pixels) -> None:
    series = nifti_of(np.stack([PLAIN, PLAIN[::-1]], axis=-1))
    second = Rendering(axis="axial", index=2, frame=2, windows=(WHOLE,))
    assert np.array_equal(shown(sandbox, series, second, pixels), PLAIN[:, ::-1, 2].T)
    with pytest.raises(ApiProblem, match="has 2 frames and frame is missing"):
        sandbox.decode(series, "nifti", AXIAL_2)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({}, r"axis is missing.*sagittal \(index=0 to index=3\), coronal \(index=0 to index=4\)"),
        ({"axis": "coronal"}, "index is missing; .* 5 coronal slices: index=0 to index=4"),
        ({"axis": "axial", "index": 6}, "index 6 is out of range; .* 6 axial .* to index=5"),
        ({"axis": "axial", "index": 0, "frame": 2}, "has 1 frame, not frame 2"),
    ],
)
async def test_what_is_missing_or_out_of_range_is_answered_with_the_range(
    zoom: ZoomClient, query: dict[str, object], says: str
) -> None:
    """Of a volume that is stored upside down and back to front, to be sure whose axes are meant."""
    stored = PLAIN.transpose(2, 0, 1)
    affine = RAS[:, [2, 0, 1, 3]]
    with pytest.raises(ZoomError, match=f"422 .*{says}"):
        await zoom.ingest(nifti_of(stored, affine), rendering=RenderingRequest(**query))


def refusal(sandbox: Sandbox, data: bytes) -> ApiProblem:
    with pytest.raises(ApiProblem) as caught:
        sandbox.decode(data, detect_format(data), AXIAL_2)
    return caught.value


def changed(data: bytes, at: int, layout: str, *values: float) -> bytes:
    """A file with other header bytes."""
    file = bytearray(data)
    struct.pack_into(layout, file, at, *values)
    return bytes(file)


GOOD = nifti_of(PLAIN)
COLOURS = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.mark.parametrize(
    ("data", "status", "says"),
    [
        (gzip.compress(b"no volume" * 100, mtime=0), 415, "the gzip data holds no NIfTI volume"),
        (Nifti1Pair(PLAIN, RAS).header.binaryblock + bytes(4), 415, "a NIfTI volume in two files"),
        (GOOD[:-1], 422, "speaks of 472 bytes, the file ends after 471"),
        (GOOD[:348], 422, "the file ends after 348"),
        (gzip.compress(GOOD, mtime=0)[:-30], 422, "the gzip data is damaged or cut off"),
        (b"\x1f\x8b" + bytes(100), 422, "the gzip data is damaged or cut off"),
        (nifti_of(PLAIN, None), 422, "does not say how the volume lies"),
        (changed(GOOD, 280, "<12f", *[0.0] * 12), 422, "does not say how the volume lies"),
        (changed(GOOD, 280, "<f", float("nan")), 422, "NIfTI header"),
        (changed(GOOD, 70, "<h", 4242), 422, "the NIfTI header cannot be read"),
        (changed(GOOD, 70, "<h", 32), 422, "no plain numbers"),
        (nifti_of(COLOURS), 422, "no plain numbers"),
        (changed(GOOD, 108, "<f", float("inf")), 422, "the NIfTI header cannot be read"),
        (changed(GOOD, 108, "<f", -400.0), 422, "the NIfTI header cannot be read"),
        (changed(GOOD, 112, "<2f", 1.0, float("nan")), 422, "the NIfTI header cannot be read"),
        (changed(GOOD, 42, "<h", 0), 422, "the volume is 0x5x6 voxels"),
        (changed(GOOD, 42, "<h", -3), 422, "voxels"),
        (nifti_of(np.zeros((2, 2, 2, 1, 3), np.uint8)), 422, "the volume is 2x2x2x1x3 voxels"),
        (nifti_claiming(30_000, 30_000, 4), 413, "30000x30000 px, at most 4000000"),
        (nifti_claiming(1000, 1000, 1000), 413, "speaks of 2000000352 bytes"),
        (nifti_claiming(1000, 1000, 20), 422, "speaks of 40000352 bytes, the file ends after 354"),
        (gzip_bomb(), 413, "inflates to more than the 480 bytes its NIfTI header speaks of"),
    ],
)
def test_a_bad_file_is_refused_with_what_is_wrong(
    sandbox: Sandbox, data: bytes, status: int, says: str
) -> None:
    problem = refusal(sandbox, data)
    assert (int(problem.status), says in problem.detail) == (status, True), problem.detail


def test_a_volume_too_large_for_the_decoder_is_stopped_and_the_next_decodes(
    pixels: Pixels,
) -> None:
    sandbox = Sandbox(DecodeLimits(max_pixels=10**8, memory_bytes=2**25, timeout_s=20.0))
    try:
        greedy = gzip.compress(nifti_of(np.zeros((400, 400, 400), np.int16)), 1)
        with pytest.raises(ApiProblem, match="more memory than one image may use") as caught:
            sandbox.decode(greedy, "nifti", AXIAL_2)
        assert caught.value.status == 413
        assert np.array_equal(shown(sandbox, GOOD, AXIAL_2, pixels), PLAIN[::-1, ::-1, 2].T)
    finally:
        sandbox.close()


def test_headers_with_damaged_bytes_give_a_picture_or_a_reason(sandbox: Sandbox) -> None:
    random = np.random.default_rng(5)
    outcomes: list[tuple[int, str]] = []
    for _ in range(100):
        data = bytearray(GOOD)
        for at in random.integers(40, 348, size=random.integers(1, 4)):
            data[at] = random.integers(256)
        try:
            sandbox.decode(bytes(data), "nifti", AXIAL_2)
            outcomes.append((200, ""))
        except ApiProblem as problem:
            outcomes.append((int(problem.status), problem.detail))
    assert {200, 422} <= {status for status, _ in outcomes} <= {200, 413, 415, 422}
    unclear = [d for _, d in outcomes if re.search("gave up|cannot be decoded", d)]
    assert unclear == []
