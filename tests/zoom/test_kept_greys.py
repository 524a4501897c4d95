"""A crop's window: the grey levels of the file, shown as an ingest with that window shows them."""

import io

import httpx
import numpy as np
import pydicom
import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel import Nifti1Image
from numpy.typing import NDArray
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from services.zoom.decode import decode_original
from services.zoom.formats import KEPT, Rendering, Window
from shared.api.zoom import (
    BlankRequest,
    CropRequest,
    PixelLimitsModel,
    RenderingRequest,
    WireBox,
    WireWindow,
)
from shared.clients.zoom import ZoomClient
from shared.errors import NoGreyLevels
from tests.zoom.conftest import client_of
from tests.zoom.files import dataset_of
from tests.zoom.files import file_of as dicom_of

LIMITS = PixelLimitsModel(min_pixels=28 * 28, max_pixels=448 * 448)
MAX_PIXELS = 10**6


def file_of(name: str) -> bytes:
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str)
    with open(path, "rb") as file:
        return file.read()


def pixels(png: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(png)))


def inverted(**changes: object) -> bytes:
    """CT_small as MONOCHROME1, with other elements changed too."""
    dataset = pydicom.dcmread(io.BytesIO(file_of("CT_small.dcm")))
    dataset.PhotometricInterpretation = "MONOCHROME1"
    for keyword, element in changes.items():
        setattr(dataset, keyword, element)
    written = io.BytesIO()
    dataset.save_as(written)
    return written.getvalue()


def looked_up() -> bytes:
    """Stored values 0…99, which a modality LUT maps to their squares."""
    lut = Dataset()
    lut.LUTDescriptor, lut.ModalityLUTType = [100, 0, 16], "US"
    lut.LUTData = [value * value for value in range(100)]
    lut["LUTData"].VR = "US"
    stored = np.arange(100, dtype=np.uint16).reshape(10, 10)
    return dicom_of(dataset_of(stored, ModalityLUTSequence=[lut]))


NIFTI = Nifti1Image(np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6), np.eye(4)).to_bytes()
SCALED = Nifti1Image(np.linspace(-1, 1, 120, dtype=np.float32).reshape(4, 5, 6), np.eye(4))
SLICE = {"axis": "axial", "index": 2}

FILES: dict[str, tuple[bytes, dict[str, object]]] = {
    "CT": (file_of("CT_small.dcm"), {}),
    "MR": (file_of("MR_small.dcm"), {}),
    "MONOCHROME1": (inverted(), {}),
    "SIGMOID": (inverted(VOILUTFunction="SIGMOID", RescaleSlope="0.1234567"), {}),
    "modality LUT": (looked_up(), {}),
    "NIfTI": (NIFTI, SLICE),
    "NIfTI of floats": (SCALED.to_bytes(), SLICE),
}


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=12, deadline=None)
@given(center=st.floats(-2000, 2000), width=st.floats(0.01, 5000))
def test_another_window_shows_what_an_ingest_with_it_would(
    name: str, center: float, width: float
) -> None:
    data, query = FILES[name]
    source = "nifti" if query else "dicom"
    own = Rendering(**query)  # pyright: ignore[reportArgumentType]
    asked = Rendering(**query, windows=(Window(center, width),))  # pyright: ignore[reportArgumentType]
    kept = decode_original(data, source, own, MAX_PIXELS).greys
    assert kept is not None
    again = decode_original(kept.blob, KEPT, Rendering(windows=asked.windows), MAX_PIXELS)
    ingested = decode_original(data, source, asked, MAX_PIXELS)
    assert np.array_equal(pixels(again.png), pixels(ingested.png))
    assert ingested.greys == kept, "the window of the ingest changes nothing about what is kept"


async def test_a_crop_in_a_window_comes_from_the_kept_grey_levels(zoom_app: FastAPI) -> None:
    async with client_of(zoom_app) as http:
        zoom = ZoomClient("http://zoom", http)
        data = file_of("CT_small.dcm")
        stored = await zoom.ingest(data)
        other = RenderingRequest(window_center=40, window_width=400)
        soft = await zoom.ingest(data, rendering=other)
        assert stored.grey == soft.grey is not None
        assert stored.image != soft.image
        window = WireWindow(center=40, width=400)
        for box in (None, [20.0, 30.0, 90.0, 100.0]):
            first = CropRequest(image=stored.image, box=box, limits=LIMITS, window=window)
            second = CropRequest(image=soft.image, box=box, limits=LIMITS)
            plain = CropRequest(image=stored.image, box=box, limits=LIMITS)
            shown = [(await zoom.crop(request)).crop for request in (first, second, plain)]
            assert shown[0] == shown[1] != shown[2], "content-addressed like every crop"


@pytest.mark.parametrize("kind", ["png", "colour"])
async def test_an_image_without_grey_levels_says_so(zoom_app: FastAPI, kind: str) -> None:
    async with client_of(zoom_app) as http:
        zoom = ZoomClient("http://zoom", http)
        png = io.BytesIO()
        Image.new("L", (60, 50), 90).save(png, format="PNG")
        stored = await zoom.ingest(
            png.getvalue() if kind == "png" else file_of("SC_rgb_dcmtk_+eb+cr.dcm")
        )
        assert stored.grey is None
        request = CropRequest(
            image=stored.image, limits=LIMITS, window=WireWindow(center=40, width=400)
        )
        with pytest.raises(NoGreyLevels, match="kept without grey levels"):
            await zoom.crop(request)
        assert (await zoom.crop(request.model_copy(update={"window": None}))).crop


async def test_a_window_without_a_width_is_a_bad_request(zoom_app: FastAPI) -> None:
    async with client_of(zoom_app) as http:
        body = {
            "image": "0" * 64,
            "limits": LIMITS.model_dump(),
            "window": {"center": 1, "width": 0},
        }
        response = await http.post("/v1/crops", json=body)
        assert response.status_code == httpx.codes.UNPROCESSABLE_ENTITY
        assert "window.width" in response.json()["detail"]


async def test_a_blanked_region_is_blank_in_every_window(zoom_app: FastAPI) -> None:
    async with client_of(zoom_app) as http:
        zoom = ZoomClient("http://zoom", http)
        stored = await zoom.ingest(file_of("CT_small.dcm"))
        region = WireBox(x1=40, y1=50, x2=60, y2=80)
        blanked = await zoom.blank(BlankRequest(image=stored.image, rectangles=[region]))

        async def shown(image: str, window: WireWindow | None) -> NDArray[np.uint8]:
            limits = PixelLimitsModel(min_pixels=112 * 112, max_pixels=112 * 112)
            whole = [0.0, 0.0, 112.0, 112.0]
            request = CropRequest(image=image, box=whole, limits=limits, window=window)
            return pixels(await zoom.crop_bytes((await zoom.crop(request)).crop))

        for window in (None, WireWindow(center=40, width=400), WireWindow(center=-600, width=1500)):
            before = (await shown(stored.image, window)).astype(int)
            after = (await shown(blanked.image, window)).astype(int)
            outside = np.ones(before.shape, dtype=bool)
            outside[50:80, 40:60] = False
            assert np.array_equal(before[outside], after[outside])
            inside = (slice(51, 79), slice(41, 59))
            steps = abs(np.diff(after[inside], axis=0)).mean(), abs(np.diff(before[inside], axis=0))
            assert steps[0] < 0.5 * steps[1].mean(), "smooth, whatever was there"
