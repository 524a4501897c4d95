"""A frame, a slice or a window asked for in the form is what the case is about, and says so."""

import gzip
import io
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from services.zoom.formats import PREPROCESSING_VERSION
from tests.clinic.scripted_policy import ScriptedPolicy, answer
from tests.clinic.test_cases import ask
from tests.clinic.test_problems import no_case_was_made, problem_of
from tests.zoom.files import RAMP, dataset_of, file_of, nifti_of

CT = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -1024}


def ct(num_frames: int = 1) -> bytes:
    """Frames of 40 × 40 stored values, each darker than the next."""
    frame = np.kron(RAMP, np.ones((4, 4), np.uint16)) + 1000
    dataset: Dataset = dataset_of(frame, **CT)
    dataset.NumberOfFrames = num_frames
    dataset.PixelData = b"".join((frame + 30 * n).tobytes() for n in range(num_frames))
    return file_of(dataset)


def levels(clinic: httpx.Client, case: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(clinic.get(case["image"]["url"]).content)))


def test_a_frame_and_a_window_are_shown_and_echoed(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([answer("A")])

    case = ask(clinic, image=ct(3), k="1", frame="2", window="brain").json()

    assert case["image"]["rendering"] == {
        "frame": 2,
        "num_frames": 3,
        "axis": None,
        "index": None,
        "num_slices": None,
        "orientation": None,
        "grey_mapping": "requested_window",
        "windows": [{"center": 40.0, "width": 80.0, "function": "LINEAR", "preset": "brain"}],
    }
    assert case["image"]["preprocessing_version"] == PREPROCESSING_VERSION
    assert case["image"]["header"]["modality"] == "CT"
    # PS3.3 C.11.2.1.2.1 of the frame's first value, 1000 + 30 - 1024 = 6 HU
    assert levels(clinic, case)[0, 0] == round(((6 - 39.5) / 79 + 0.5) * 255)


def test_three_windows_make_a_colour_picture(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([answer("A")])

    case = ask(clinic, image=ct(), k="1", window="ct_rgb").json()

    assert len(case["image"]["rendering"]["windows"]) == 3
    assert levels(clinic, case).shape == (40, 40, 3)


def test_a_slice_of_a_packed_volume_is_asked_for_by_axis_and_index(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([answer("A")])
    volume = np.zeros((40, 50, 60), np.int16)
    volume[:, :, 7] = 100

    case = ask(
        clinic,
        image=gzip.compress(nifti_of(volume)),
        k="1",
        **{"axis": "axial", "index": "7", "window_center": "50", "window_width": "400"},
    ).json()

    rendering = case["image"]["rendering"]
    assert (rendering["axis"], rendering["index"], rendering["num_slices"]) == ("axial", 7, 60)
    assert rendering["orientation"] == "RA"
    assert case["image"]["source_format"] == "nifti"
    assert set(levels(clinic, case).ravel().tolist()) == {round((100 + 150) / 400 * 255)}


@pytest.mark.parametrize(
    ("image", "form", "said"),
    [
        (ct(3), {}, "has 3 frames and frame is missing; frame=1 to frame=3 is accepted"),
        (ct(3), {"frame": "4"}, "has 3 frames, not frame 4"),
        (ct(), {"axis": "axial", "index": "1"}, "axis and index are accepted with NIfTI files"),
        (nifti_of(np.zeros((2, 3, 4), np.int16)), {}, "axial (index=0 to index=3)"),
        (ct(), {"window_center": "40"}, "window_center and window_width are accepted together"),
        (None, {"window": "lung"}, "are accepted with DICOM and NIfTI files"),
    ],
)
def test_what_zoom_says_of_a_request_is_the_clinics_problem(
    clinic: httpx.Client, image: bytes | None, form: dict[str, str], said: str
):
    status, title, detail = problem_of(ask(clinic, image=image, **form))
    assert (status, title) == (422, "The image cannot be used")
    assert said in detail
    assert no_case_was_made(clinic)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"frame": "0"}, "body.frame: Input should be greater than or equal to 1"),
        ({"axis": "left"}, "body.axis: Input should be 'sagittal', 'coronal' or 'axial'"),
        ({"window": "heart"}, "body.window"),
        ({"window_width": "0"}, "body.window_width: Input should be greater than 0"),
        (
            {"windows": "lung"},
            "frame, axis, index, window, window_center, window_width; only choices",
        ),
    ],
)
def test_a_rendering_that_cannot_be_is_explained_by_its_field(
    clinic: httpx.Client, form: dict[str, str], said: str
):
    status, _, detail = problem_of(ask(clinic, image=ct(3), **form))
    assert status == 422
    assert said in detail


def test_the_rendering_belongs_to_what_an_idempotency_key_stands_for(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([answer("A")])
    key = {"idempotency-key": '"frames"'}

    first = ask(clinic, image=ct(3), headers=key, k="1", frame="2")
    again = ask(clinic, image=ct(3), headers=key, k="1", frame="2")
    other = ask(clinic, image=ct(3), headers=key, k="1", frame="3")

    assert (again.status_code, again.json()) == (201, first.json())
    assert problem_of(other)[:2] == (422, "Idempotency-Key is already used")


def test_the_clinic_says_that_it_takes_nifti(start_clinic: Callable[..., httpx.Client]):
    assert "NIfTI" in start_clinic().get("/v1/clinic").json()["accepted_formats"]
