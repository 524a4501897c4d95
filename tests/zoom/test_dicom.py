"""DICOM: the default window, every photometric interpretation, and files that mean harm."""

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_files
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    RLELossless,
)

from services.zoom.formats import Rendering, detect_format
from services.zoom.sandbox import Sandbox
from shared.api.headers import FileFacts
from shared.errors import ApiProblem
from tests.zoom.files import (
    RAMP,
    codestream_bomb,
    dataset_of,
    deflate_bomb,
    file_of,
    off_the_list,
    rle_bomb,
)

Pixels = Callable[[bytes], np.ndarray]

SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"


def levels_of(sandbox: Sandbox, dataset: Dataset, pixels: Pixels) -> np.ndarray:
    return pixels(sandbox.decode(file_of(dataset), "dicom").png)


def linear(values: np.ndarray, center: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1, to 0…255."""
    y = ((values - (center - 0.5)) / (width - 1) + 0.5) * 255
    return np.rint(np.clip(y, 0, 255)).astype(np.uint8)


def test_the_first_window_is_applied_and_reported(sandbox: Sandbox, pixels: Pixels) -> None:
    dataset = dataset_of(RAMP, WindowCenter=[40, 80], WindowWidth=[50, 20])
    original = sandbox.decode(file_of(dataset), "dicom")
    assert np.array_equal(pixels(original.png), linear(RAMP.astype(float), 40, 50))
    assert (original.window_center, original.window_width) == (40.0, 50.0)


def test_the_window_applies_after_the_rescale(sandbox: Sandbox, pixels: Pixels) -> None:
    stored = np.arange(-50, 50, dtype=np.int16).reshape(10, 10)
    dataset = dataset_of(
        stored, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=-990, WindowWidth=60
    )
    expected = linear(stored * 2.0 - 1000, -990, 60)
    assert np.array_equal(levels_of(sandbox, dataset, pixels), expected)


def test_a_negative_slope_turns_the_greys_around(sandbox: Sandbox, pixels: Pixels) -> None:
    dataset = dataset_of(
        RAMP, RescaleSlope=-1, RescaleIntercept=0, WindowCenter=-50, WindowWidth=60
    )
    expected = linear(-RAMP.astype(float), -50, 60)
    assert np.array_equal(levels_of(sandbox, dataset, pixels), expected)


def test_monochrome1_is_inverted(sandbox: Sandbox, pixels: Pixels) -> None:
    window = {"WindowCenter": 40, "WindowWidth": 50}
    usual = levels_of(sandbox, dataset_of(RAMP, **window), pixels)
    inverse = levels_of(sandbox, dataset_of(RAMP, "MONOCHROME1", **window), pixels)
    assert np.array_equal(inverse, 255 - usual)


@pytest.mark.parametrize(
    "window",
    [{}, {"WindowCenter": 50, "WindowWidth": 0}, {"WindowCenter": 50}],
)
def test_without_a_usable_window_the_values_are_stretched(
    sandbox: Sandbox, pixels: Pixels, window: dict[str, int]
) -> None:
    original = sandbox.decode(file_of(dataset_of(RAMP + 500, **window)), "dicom")
    expected = np.rint(RAMP * (255 / 99)).astype(np.uint8)
    assert np.array_equal(pixels(original.png), expected)
    assert original.window_center is None


def test_padding_does_not_take_part_in_the_stretch(sandbox: Sandbox, pixels: Pixels) -> None:
    stored = RAMP.astype(np.int16)
    stored[0, 0] = -2000
    dataset = dataset_of(stored, PixelPaddingValue=-2000)
    levels = levels_of(sandbox, dataset, pixels)
    assert levels[0, :3].tolist() == [0, 0, 3]
    assert levels[9, 9] == 255


def test_a_sigmoid_window_is_steepest_at_its_centre(sandbox: Sandbox, pixels: Pixels) -> None:
    dataset = dataset_of(RAMP, WindowCenter=50, WindowWidth=20, VOILUTFunction="SIGMOID")
    expected = 255 / (1 + np.exp(-4 * (RAMP - 50.0) / 20))
    assert np.array_equal(levels_of(sandbox, dataset, pixels), np.rint(expected).astype(np.uint8))


def test_a_voi_lut_of_eight_bits_and_many_entries_does_not_wrap(
    sandbox: Sandbox, pixels: Pixels
) -> None:
    stored = np.linspace(0, 999, 100).astype(np.uint16).reshape(10, 10)
    lut = Dataset()
    lut.add_new(0x00283002, "US", [1000, 0, 8])
    lut.add_new(0x00283006, "US", [int(v) for v in np.linspace(0, 255, 1000)])
    levels = levels_of(sandbox, dataset_of(stored, VOILUTSequence=[lut]), pixels)
    assert np.array_equal(levels, np.linspace(0, 255, 1000).astype(np.uint8)[stored])


def test_colours_are_kept(sandbox: Sandbox, pixels: Pixels) -> None:
    colours = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(levels_of(sandbox, dataset_of(colours, "RGB"), pixels), colours)


def test_deep_colours_are_scaled_by_their_bits(sandbox: Sandbox, pixels: Pixels) -> None:
    colours = np.array([[[0, 2048, 4095]]], dtype=np.uint16)
    dataset = dataset_of(colours, "RGB", BitsStored=12, HighBit=11)
    assert levels_of(sandbox, dataset, pixels).tolist() == [[[0, 128, 255]]]


def test_ybr_becomes_rgb(sandbox: Sandbox, pixels: Pixels) -> None:
    ybr = np.array([[[76, 85, 255], [150, 44, 21], [29, 255, 107], [128, 128, 128]]], np.uint8)
    levels = levels_of(sandbox, dataset_of(ybr, "YBR_FULL"), pixels).astype(int)
    expected = [[[255, 0, 0], [0, 255, 0], [0, 0, 255], [128, 128, 128]]]
    assert np.abs(levels - np.array(expected)).max() <= 2


def test_a_palette_becomes_its_colours(sandbox: Sandbox, pixels: Pixels) -> None:
    stored = np.array([[0, 1], [2, 3]], dtype=np.uint8)
    reds = np.array([0, 65535, 32768, 257], dtype=np.uint16)
    dataset = dataset_of(stored, "PALETTE COLOR")
    for colour, entries in (("Red", reds), ("Green", reds[::-1]), ("Blue", reds * 0)):
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [4, 0, 16])
        setattr(dataset, f"{colour}PaletteColorLookupTableData", entries.tobytes())
    levels = levels_of(sandbox, dataset, pixels)
    assert levels.tolist() == [[[0, 1, 0], [255, 128, 0]], [[128, 255, 0], [1, 0, 0]]]


def test_deflated_and_rle_files_are_read_like_plain_ones(sandbox: Sandbox, pixels: Pixels) -> None:
    plain = levels_of(sandbox, dataset_of(RAMP), pixels)
    deflated = dataset_of(RAMP)
    deflated.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    assert np.array_equal(levels_of(sandbox, deflated, pixels), plain)
    packed = dataset_of(RAMP)
    packed.compress(RLELossless)
    assert np.array_equal(levels_of(sandbox, packed, pixels), plain)


def refusal(sandbox: Sandbox, data: bytes) -> ApiProblem:
    with pytest.raises(ApiProblem) as caught:
        sandbox.decode(data, detect_format(data))
    return caught.value


def test_a_small_rle_file_that_asks_for_gigabytes_is_refused_by_its_header(
    sandbox: Sandbox,
) -> None:
    started = time.monotonic()
    problem = refusal(sandbox, rle_bomb())
    assert (problem.status, "46340x46340" in problem.detail) == (413, True)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("kind", ["JPEG 2000", "JPEG-LS", "JPEG"])
def test_a_codestream_that_asks_for_more_than_its_header_is_refused_and_the_next_decodes(
    sandbox: Sandbox, pixels: Pixels, kind: str
) -> None:
    problem = refusal(sandbox, codestream_bomb(kind))
    assert problem.status in (413, 422)
    assert levels_of(sandbox, dataset_of(RAMP), pixels).shape == (10, 10)


def test_a_small_deflated_file_that_inflates_a_thousandfold_is_refused(
    sandbox: Sandbox,
) -> None:
    bomb = deflate_bomb()
    assert len(bomb) < 2**20
    problem = refusal(sandbox, bomb)
    assert (problem.status, "inflates to over" in problem.detail) == (413, True)


def test_a_transfer_syntax_off_the_list_is_refused_with_the_list(sandbox: Sandbox) -> None:
    problem = refusal(sandbox, off_the_list())
    assert problem.status == 415
    assert "1.2.840.10008.1.2.9" in problem.detail
    assert "JPEG 2000 Lossless" in problem.detail


@pytest.mark.parametrize(
    ("element", "value", "complaint"),
    [
        ("Rows", 0, "0 px"),
        ("SamplesPerPixel", 4, "SamplesPerPixel is 4"),
        ("BitsAllocated", 24, "BitsAllocated is 24"),
        ("PhotometricInterpretation", "CMYK", "'CMYK' is not one of MONOCHROME1"),
        ("PhotometricInterpretation", "RGB", "contradicts itself"),
        ("PixelData", bytes(150), "cannot be decoded"),
    ],
)
def test_a_contradictory_header_is_refused_by_name(
    sandbox: Sandbox, element: str, value: Any, complaint: str
) -> None:
    problem = refusal(sandbox, file_of(dataset_of(RAMP, **{element: value})))
    assert problem.status == 422
    assert complaint in problem.detail
    assert "Doe" not in problem.detail


def test_a_missing_element_is_named(sandbox: Sandbox) -> None:
    dataset = dataset_of(RAMP)
    del dataset.Rows, dataset.BitsAllocated
    assert "lacks Rows, BitsAllocated" in refusal(sandbox, file_of(dataset)).detail


def test_a_report_holds_no_image(sandbox: Sandbox) -> None:
    problem = refusal(sandbox, (SHIPPED / "reportsi.dcm").read_bytes())
    assert problem.detail == "the DICOM file holds no image (no pixel data)"


def outcome_of(
    sandbox: Sandbox, data: bytes, rendering: Rendering, pixels: Pixels
) -> tuple[int, str, np.ndarray | None]:
    try:
        original = sandbox.decode(data, detect_format(data), rendering, with_identity=True)
        facts = FileFacts.model_validate_json(original.facts_json)
        assert (facts.identity is None) == (original.source_format != "dicom")
        return 200, "", pixels(original.png)
    except ApiProblem as problem:
        return int(problem.status), problem.detail, None


def by_pydicom(dataset: Dataset, frame: int) -> np.ndarray:
    """The oracle: pydicom's own decoding, rescaling and windowing."""
    stored = pixel_array(dataset, index=frame - 1)
    kind = dataset.PhotometricInterpretation
    if kind == "PALETTE COLOR":
        colours = apply_color_lut(stored, dataset)[..., :3]
        return colours / 257 if colours.dtype == np.uint16 else colours
    if not kind.startswith("MONOCHROME"):
        return stored * (255 / (2.0**dataset.BitsStored - 1))
    for groups, number in (("Shared", 0), ("PerFrame", frame - 1)):
        for group in dataset.get(f"{groups}FunctionalGroupsSequence", [])[number : number + 1]:
            for macro in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                dataset.update(group[macro][0] if macro in group else {})
    shown = apply_modality_lut(stored, dataset).astype(float)
    if "WindowCenter" in dataset:
        low, high = apply_voi_lut(np.array([-1e30, 1e30]), dataset)
        shown = apply_voi_lut(shown, dataset)
    else:
        measured = shown[stored != dataset.get("PixelPaddingValue", np.inf)]
        low, high = measured.min(), measured.max()
    levels = np.clip((shown - low) * (255 / ((high - low) or 1)), 0, 255)
    return 255 - levels if kind == "MONOCHROME1" else levels


@pytest.mark.timeout(900)  # 180 processes, on a machine that may be busy
@pytest.mark.filterwarnings("ignore")  # what pydicom says of these files
def test_every_file_that_pydicom_ships_gives_pydicoms_picture_or_a_clear_refusal(
    sandbox: Sandbox, pixels: Pixels
) -> None:
    """Of several frames the first and the last; within the fixture's 512 MiB."""
    outcomes: dict[str, int] = {}
    for path in sorted(p for p in map(Path, get_testdata_files()) if p.is_file()):
        data = path.read_bytes()
        dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        count = str(dataset.get("NumberOfFrames"))  # one file says "1A"
        num_frames = int(count) if count.isdecimal() else 1
        for frame in sorted({1, num_frames}):
            outcome, detail, levels = outcome_of(sandbox, data, Rendering(frame=frame), pixels)
            outcomes[path.name] = outcome
            if levels is None:
                assert outcome in (413, 415, 422), path
                assert len(detail) > 20, path
                assert "gave up" not in detail, path
                continue
            difference = levels - by_pydicom(dataset, frame).astype(float)
            assert np.abs(difference).max() <= 1, path
    assert len(outcomes) > 150
    assert list(outcomes.values()).count(200) > 80
    assert outcomes["no_meta.dcm"] == 415
    assert outcomes["MR_truncated.dcm"] == 422


def test_one_image_in_six_encodings_is_one_original(sandbox: Sandbox) -> None:
    names = ("MR_small", "MR_small_RLE", "MR_small_bigendian", "MR_small_implicit",
             "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless")  # fmt: skip
    pngs = {sandbox.decode((SHIPPED / f"{name}.dcm").read_bytes(), "dicom").png for name in names}
    assert len(pngs) == 1
