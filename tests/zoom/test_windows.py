"""Frames and windows that are asked for: hand-computed greys, and what the answer says was done."""

import asyncio
from collections.abc import Callable

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from services.zoom.formats import PREPROCESSING_VERSION, Rendering, Window
from services.zoom.rendering import PRESETS
from services.zoom.sandbox import Sandbox
from shared.api.zoom import AppliedRendering, AppliedWindow, RenderingRequest
from shared.clients.zoom import ZoomClient
from shared.errors import ApiProblem, ZoomError
from tests.zoom.files import RAMP, dataset_of, file_of

Encode = Callable[..., bytes]
Pixels = Callable[[bytes], np.ndarray]

HU = np.array([[-1350, -1100, -600, -150], [0, 40, 80, 400]], dtype=np.int16)
CT = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -1024, "RescaleType": "HU"}


def ct_file(**elements: object) -> bytes:
    """These Hounsfield units, stored as a scanner does."""
    stored = (HU + 1024).astype(np.int16)
    return file_of(dataset_of(stored, **{**CT, **elements}))


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        # (HU - (c - 0.5)) / (w - 1) + 0.5, times 255: PS3.3 C.11.2.1.2.1
        ("lung", [[0, 43, 128, 204], [230, 236, 243, 255]]),
        ("brain", [[0, 0, 0, 0], [0, 129, 255, 255]]),
        ("bone", [[0, 0, 0, 50], [71, 77, 82, 128]]),
        ("mediastinum", [[0, 0, 0, 0], [91, 121, 150, 255]]),
        ("soft_tissue", [[0, 0, 0, 6], [102, 128, 153, 255]]),
        ("abdomen", [[0, 0, 0, 0], [96, 121, 147, 255]]),
    ],
)
async def test_a_preset_gives_the_greys_worked_out_by_hand(
    zoom: ZoomClient, pixels: Pixels, preset: str, expected: list[list[int]]
) -> None:
    answer = await zoom.ingest(ct_file(), rendering=RenderingRequest(window=preset))
    assert pixels(await zoom.image_bytes(answer.image)).tolist() == expected
    center, width = PRESETS[preset]
    window = AppliedWindow(center=center, width=width, function="LINEAR", preset=preset)
    assert answer.rendering.windows == [window]
    assert answer.rendering.grey_mapping == "requested_window"
    assert (answer.window_center, answer.window_width) == (center, width)
    assert answer.preprocessing_version == PREPROCESSING_VERSION


async def test_three_windows_are_red_green_and_blue(zoom: ZoomClient, pixels: Pixels) -> None:
    answer = await zoom.ingest(ct_file(), rendering=RenderingRequest(window="ct_rgb"))
    shown = pixels(await zoom.image_bytes(answer.image))
    assert shown.shape == (2, 4, 3)
    assert shown[1, 1].tolist() == [133, 128, 129]  # 40 HU
    assert shown[0, 3].tolist() == [109, 0, 0]  # -150 HU
    assert [(w.center, w.width) for w in answer.rendering.windows] == [
        (0, 2048),
        (40, 350),
        (40, 80),
    ]
    assert answer.window_center is None


async def test_a_window_by_numbers_is_the_same_picture_as_the_files_own(zoom: ZoomClient) -> None:
    data = ct_file(WindowCenter=40, WindowWidth=80)
    own = await zoom.ingest(data)
    asked = await zoom.ingest(data, rendering=RenderingRequest(window_center=40, window_width=80))
    assert own.image == asked.image
    assert own.rendering.grey_mapping == "file_window"
    assert asked.rendering.grey_mapping == "requested_window"
    assert own.rendering.windows == asked.rendering.windows


async def test_other_windows_and_frames_are_other_originals(zoom: ZoomClient) -> None:
    queries = [RenderingRequest(window=window) for window in (*PRESETS, "ct_rgb")]
    answers = [await zoom.ingest(ct_file(), rendering=query) for query in queries]
    assert len({answer.image for answer in answers}) == len(PRESETS) + 1
    frames = file_of(frames_of(RAMP, RAMP.T))
    first, second = await asyncio.gather(
        *(zoom.ingest(frames, rendering=RenderingRequest(frame=frame)) for frame in (1, 2))
    )
    assert first.image != second.image


async def test_the_answer_says_what_was_done_when_nothing_was_asked(
    zoom: ZoomClient, encoded: Encode
) -> None:
    plain = await zoom.ingest(encoded(np.zeros((4, 4, 3), np.uint8), "PNG"))
    nothing = AppliedRendering(frame=1, num_frames=1, grey_mapping="none", windows=[])
    assert plain.rendering == nothing
    deep = await zoom.ingest(encoded(RAMP, "PNG"))
    assert deep.rendering.grey_mapping == "value_range"
    unwindowed = await zoom.ingest(ct_file())
    assert unwindowed.rendering.grey_mapping == "value_range"
    lut = Dataset()
    lut.add_new(0x00283002, "US", [2, 0, 8])
    lut.add_new(0x00283006, "US", [0, 255])
    looked_up = await zoom.ingest(file_of(dataset_of(RAMP, VOILUTSequence=[lut])))
    assert looked_up.rendering.grey_mapping == "file_voi_lut"


def test_a_requested_window_takes_the_place_of_the_files_lut_and_of_its_windows(
    sandbox: Sandbox, pixels: Pixels
) -> None:
    lut = Dataset()
    lut.add_new(0x00283002, "US", [2, 0, 8])
    lut.add_new(0x00283006, "US", [0, 255])
    data = file_of(dataset_of(RAMP, VOILUTSequence=[lut], WindowCenter=[1, 2], WindowWidth=[3, 4]))
    shown = sandbox.decode(data, "dicom", Rendering(windows=(Window(50, 101),)))
    assert pixels(shown.png)[5].tolist() == [
        round(((v - 49.5) / 100 + 0.5) * 255) for v in range(50, 60)
    ]


def test_numbers_longer_than_dicom_writes_them_are_applied_as_they_are(
    sandbox: Sandbox, pixels: Pixels
) -> None:
    data = file_of(dataset_of(RAMP, RescaleSlope=1e-6, RescaleIntercept="-0.3333333333333"))
    asked = Window(-1 / 3 + 50e-6, 1e-4)
    original = sandbox.decode(data, "dicom", Rendering(windows=(asked,)))
    assert (original.window_center, original.window_width) == (asked.center, asked.width)
    assert pixels(original.png)[:, 1].tolist() == [3, 28, 54, 79, 105, 130, 156, 181, 207, 232]


def test_a_requested_window_of_monochrome1_is_inverted_too(
    sandbox: Sandbox, pixels: Pixels
) -> None:
    asked = Rendering(windows=(Window(50, 101),))
    usual = sandbox.decode(file_of(dataset_of(RAMP)), "dicom", asked)
    inverse = sandbox.decode(file_of(dataset_of(RAMP, "MONOCHROME1")), "dicom", asked)
    assert np.array_equal(pixels(inverse.png), 255 - pixels(usual.png))


def test_a_window_narrower_than_one_is_exact(sandbox: Sandbox, pixels: Pixels) -> None:
    asked = Rendering(windows=(Window(0.5, 0.5),))
    data = file_of(dataset_of(RAMP, RescaleSlope=0.01, RescaleIntercept=0))
    original = sandbox.decode(data, "dicom", asked)
    assert original.shown.windows[0].function == "LINEAR_EXACT"
    assert pixels(original.png)[5, 0] == 128  # 0.5, the centre
    assert pixels(original.png)[2, 5] == 0  # 0.25
    assert pixels(original.png)[7, 5] == 255  # 0.75


def test_signed_values_of_twelve_bits_are_signed(sandbox: Sandbox, pixels: Pixels) -> None:
    """A scanner may leave the unused high bits of a negative value zero."""
    values = np.array([[-2048, -1, 0, 2047]], dtype=np.int16)
    data = file_of(dataset_of(values & 0x0FFF, PixelRepresentation=1, BitsStored=12, HighBit=11))
    levels = pixels(sandbox.decode(data, "dicom").png)
    assert levels.tolist() == [[0, 127, 128, 255]]


def test_a_range_of_padding_does_not_take_part_in_the_stretch(
    sandbox: Sandbox, pixels: Pixels
) -> None:
    stored = RAMP.astype(np.int16)
    stored[0, :2] = (-2000, -1500)
    dataset = dataset_of(stored, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1000)
    levels = pixels(sandbox.decode(file_of(dataset), "dicom").png)
    assert levels[0, :4].tolist() == [0, 0, 0, 3]


def frames_of(*frames: np.ndarray, **elements: object) -> Dataset:
    """A multi-frame dataset."""
    dataset = dataset_of(frames[0], **elements)
    dataset.NumberOfFrames = len(frames)
    dataset.PixelData = b"".join(frame.tobytes() for frame in frames)
    return dataset


async def test_a_frame_is_the_picture_of_that_number(zoom: ZoomClient, pixels: Pixels) -> None:
    data = file_of(frames_of(RAMP, RAMP.T, RAMP[::-1]))
    for number, frame in enumerate((RAMP, RAMP.T, RAMP[::-1]), start=1):
        answer = await zoom.ingest(data, rendering=RenderingRequest(frame=number))
        expected = np.rint(frame * (255 / 99)).astype(np.uint8)
        assert np.array_equal(pixels(await zoom.image_bytes(answer.image)), expected)
        assert (answer.rendering.frame, answer.rendering.num_frames) == (number, 3)


def test_an_enhanced_frame_has_its_own_rescale_and_window(sandbox: Sandbox, pixels: Pixels) -> None:
    def group(intercept: float | None, center: float | None) -> Dataset:
        rescale, window, group = Dataset(), Dataset(), Dataset()
        if intercept is not None:
            rescale.RescaleSlope, rescale.RescaleIntercept = 1, intercept
            group.PixelValueTransformationSequence = Sequence([rescale])
        if center is not None:
            window.WindowCenter, window.WindowWidth = center, 101
            group.FrameVOILUTSequence = Sequence([window])
        return group

    dataset = frames_of(RAMP, RAMP)
    shared = group(-1000, None)
    shared.PixelValueTransformationSequence[0].Rows = 40_000  # not its place: must not be believed
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = Sequence([group(None, -950), group(0, 20)])
    first, second = (
        sandbox.decode(file_of(dataset), "dicom", Rendering(frame=frame)) for frame in (1, 2)
    )
    assert first.shown.windows == (Window(-950, 101),)
    assert second.shown.windows == (Window(20, 101),)
    assert pixels(first.png)[5, 0] == round((0.5 / 100 + 0.5) * 255)
    assert pixels(second.png)[2, 0] == round((0.5 / 100 + 0.5) * 255)


@pytest.mark.parametrize(
    ("frames", "asked", "says"),
    [
        (3, None, "has 3 frames and frame is missing; frame=1 to frame=3 is accepted"),
        (3, 4, "has 3 frames, not frame 4; frame=1 to frame=3 is accepted"),
        (1, 2, "has 1 frame, not frame 2; frame=1 is accepted"),
    ],
)
async def test_a_missing_or_impossible_frame_is_answered_with_the_count(
    zoom: ZoomClient, frames: int, asked: int | None, says: str
) -> None:
    with pytest.raises(ZoomError, match=f"422 .*{says}"):
        await zoom.ingest(
            file_of(frames_of(*[RAMP] * frames)), rendering=RenderingRequest(frame=asked)
        )


def test_frames_that_are_not_there_are_refused(sandbox: Sandbox) -> None:
    data = file_of(dataset_of(RAMP, NumberOfFrames=2**31 - 1))
    with pytest.raises(ApiProblem, match="cannot be decoded") as caught:
        sandbox.decode(data, "dicom", Rendering(frame=2**31 - 1))
    assert caught.value.status == 422


@pytest.mark.parametrize(
    ("elements", "says"),
    [
        ({"Modality": "MR"}, "the Modality is MR: window_center and window_width are accepted"),
        ({"Modality": None}, "the Modality is not given"),
        ({"RescaleIntercept": None}, "no rescale"),
    ],
)
async def test_a_preset_is_refused_where_values_are_not_hounsfield_units(
    zoom: ZoomClient, elements: dict[str, object], says: str
) -> None:
    dataset = dataset_of(RAMP, **{**CT, **elements})
    for keyword in (keyword for keyword, value in elements.items() if value is None):
        delattr(dataset, keyword)
    with pytest.raises(ZoomError, match=f"422 .*{says}"):
        await zoom.ingest(file_of(dataset), rendering=RenderingRequest(window="lung"))


async def test_a_window_is_refused_where_there_are_no_greys(
    zoom: ZoomClient, encoded: Encode
) -> None:
    query = RenderingRequest(window_center=5, window_width=5)
    colours = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ZoomError, match=r"422 .*accepted with grey images; this one is RGB"):
        await zoom.ingest(file_of(dataset_of(colours, "RGB")), rendering=query)
    with pytest.raises(ZoomError, match=r"422 .*DICOM and NIfTI files; this is a PNG file"):
        await zoom.ingest(encoded(colours, "PNG"), rendering=query)
