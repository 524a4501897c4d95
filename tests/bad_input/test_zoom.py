"""Zoom: whatever file or request is sent, the answer says what was wrong, and zoom lives."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.bad_input.cases import (
    NO_BLOB,
    BadRequest,
    Chunks,
    check,
    json_of,
    nested,
    raw_json,
    send,
)
from tests.processes import Process, running
from tests.zoom.files import (
    RAMP,
    dataset_of,
    deflate_bomb,
    file_of,
    gzip_bomb,
    nifti_claiming,
    nifti_of,
    off_the_list,
    png_claiming,
    rle_bomb,
)

MAX_UPLOAD_BYTES = 2 * 2**20
MAX_PIXELS = 4_000_000
CROP = {"image": "$IMAGE", "limits": {"min_pixels": 784, "max_pixels": 100_000}}
WHAT_IS_ACCEPTED = "PNG, JPEG, WebP, TIFF, DICOM and NIfTI"


def picture(file_format: str, **options: object) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, file_format, **options)
    return file.getvalue()


def halved(data: bytes) -> bytes:
    return data[: len(data) // 2]


def image_case(name: str, content: bytes | Chunks, status: int, *says: str) -> BadRequest:
    return BadRequest(name, "/v1/images", content, status, says, headers={})


def asked_case(name: str, query: str, content: bytes, status: int, *says: str) -> BadRequest:
    return BadRequest(name, f"/v1/images?{query}", content, status, says, headers={})


def crop_case(name: str, content: bytes, status: int, *says: str) -> BadRequest:
    return BadRequest(name, "/v1/crops", content, status, says)


def get_case(name: str, path: str, status: int, *says: str, method: str = "GET") -> BadRequest:
    return BadRequest(name, path, b"", status, says, method=method, headers={})


TWO_PAGES = {"save_all": True, "append_images": [Image.new("RGB", (64, 48))]}
FILES = [
    image_case("an empty file", b"", 422, "the body is empty; send the file's bytes"),
    image_case("a text", b"no image at all", 415, "no known image", WHAT_IS_ACCEPTED),
    image_case("a GIF", picture("GIF"), 415, WHAT_IS_ACCEPTED),
    image_case("a PDF", b"%PDF-1.7\n%%EOF", 415, WHAT_IS_ACCEPTED),
    image_case("a PNG cut in half", halved(picture("PNG")), 422, "PNG file cannot be decoded"),
    image_case("a JPEG cut in half", halved(picture("JPEG")), 422, "JPEG file cannot be decoded"),
    image_case("a WebP cut in half", halved(picture("WEBP")), 422, "WEBP file cannot be decoded"),
    image_case("a TIFF cut in half", halved(picture("TIFF")), 422, "TIFF file cannot be decoded"),
    image_case(
        "a PNG that claims ten gigapixels",
        png_claiming(100_000, 100_000),
        413,
        "100000x100000 px",
        f"at most {MAX_PIXELS} pixels are accepted",
    ),
    image_case("a PNG without a pixel", png_claiming(0, 10), 422, "PNG"),
    image_case("a TIFF of two pages", picture("TIFF", **TWO_PAGES), 422, "2 frames", "single"),
    image_case(
        "a DICOM file whose RLE asks for gigabytes", rle_bomb(), 413, "46340x46340", "at most"
    ),
    image_case("a DICOM file that inflates a thousandfold", deflate_bomb(), 413, "inflates to"),
    image_case("a DICOM file cut in half", halved(file_of(dataset_of(RAMP))), 422, "DICOM file"),
    image_case(
        "a DICOM file of seven frames",
        file_of(dataset_of(RAMP, NumberOfFrames=7)),
        422,
        "7 frames",
        "frame is missing; frame=1 to frame=7 is accepted",
    ),
    image_case(
        "a DICOM file of an unknown transfer syntax",
        off_the_list(),
        415,
        "1.2.840.10008.1.2.9",
        "JPEG 2000 Lossless",
    ),
    image_case(
        "a DICOM file whose header contradicts itself",
        file_of(dataset_of(RAMP, PhotometricInterpretation="RGB")),
        422,
        "contradicts itself",
    ),
    image_case(
        "a file over the limit", bytes(MAX_UPLOAD_BYTES + 1), 413, f"limit of {MAX_UPLOAD_BYTES}"
    ),
    image_case(
        "a file over the limit that does not say so",
        Chunks(bytes(2**18), 9),
        413,
        f"limit of {MAX_UPLOAD_BYTES}",
    ),
]
SEVEN_FRAMES = file_of(dataset_of(RAMP, NumberOfFrames=7))
VOLUME = nifti_of(np.zeros((4, 5, 6), np.int16))
ASKED = [
    asked_case("a frame that is not there", "frame=8", SEVEN_FRAMES, 422, "7 frames", "frame=7"),
    asked_case("the frame before the first", "frame=0", SEVEN_FRAMES, 422, "query.frame", "to 1"),
    asked_case("a word for a frame", "frame=last", SEVEN_FRAMES, 422, "query.frame", "integer"),
    asked_case("a frame of many digits", f"frame=1{'0' * 30}", SEVEN_FRAMES, 422, "query.frame"),
    asked_case("a frame of a PNG", "frame=1", picture("PNG"), 422, "this is a PNG file"),
    asked_case(
        "a slice of a DICOM file", "axis=axial&index=0", SEVEN_FRAMES, 422, "this is a DICOM"
    ),
    asked_case(
        "a volume and no axis", "index=1", VOLUME, 422, "axis", "axial (index=0 to index=5)"
    ),
    asked_case("an unknown axis", "axis=z", VOLUME, 422, "query.axis", "'sagittal', 'coronal'"),
    asked_case("no index", "axis=coronal", VOLUME, 422, "index=0 to index=4 is accepted"),
    asked_case("an index behind the last", "axis=axial&index=6", VOLUME, 422, "6 axial", "index=5"),
    asked_case("an unknown window", "window=heart", VOLUME, 422, "query.window", "'lung'"),
    asked_case(
        "a centre and no width", "window_center=4", VOLUME, 422, "window_width: ", "together"
    ),
    asked_case(
        "two windows", "window=lung&window_center=4&window_width=4", VOLUME, 422, "not both"
    ),
    asked_case(
        "a window of no width", "window_center=4&window_width=0", VOLUME, 422, "query.window_width"
    ),
    asked_case(
        "a window at NaN", "window_center=nan&window_width=9", VOLUME, 422, "query.window_center"
    ),
    asked_case("a misspelt parameter", "windows=lung", VOLUME, 422, "query.windows"),
    asked_case("a window of colours", "window=lung", picture("JPEG"), 422, "this is a JPEG file"),
    asked_case(
        "a volume that inflates to a gigabyte", "axis=axial&index=0", gzip_bomb(), 413, "more"
    ),
    asked_case(
        "a header that claims gigabytes of voxels",
        "axis=axial&index=0",
        nifti_claiming(1000, 1000, 2000),
        413,
        "4000000352 bytes",
        "at most",
    ),
]
CROPS = [
    crop_case("no body", b"", 422, "body: Invalid JSON"),
    crop_case("a cut off body", json_of(CROP)[:40], 422, "body: Invalid JSON: EOF"),
    crop_case("a body in UTF-16", "{}".encode("utf-16"), 422, "body: Invalid JSON"),
    crop_case("a list", b"[]", 422, "body: Input should be an object"),
    crop_case("ten thousand lists in lists", nested(8000), 422, "recursion limit"),
    crop_case("no limits", json_of(CROP, limits=...), 422, "body.limits: Field required"),
    crop_case(
        "an unknown field",
        json_of(CROP, boxes=[]),
        422,
        "body.boxes: unknown field; accepted: image, box, frame, view, limits, min_side_px",
    ),
    crop_case(
        "an unknown field inside",
        json_of(CROP, limits={"min_pixels": 784, "max_pixels": 784, "minimum": 3}),
        422,
        "body.limits.minimum: unknown field; accepted: min_pixels, max_pixels",
    ),
    crop_case(
        "a field whose name is a megabyte's worth of a limit",
        json_of(CROP, **{"k" * 9000: 1}),
        422,
        "unknown field",
    ),
    crop_case("a NaN", raw_json(CROP, box="[NaN, 0, 5, 5]"), 422, "body.box.0", "finite number"),
    crop_case(
        "an infinity", raw_json(CROP, box="[0, 0, 5, Infinity]"), 422, "body.box.3", "finite number"
    ),
    crop_case(
        "a number beyond floats", raw_json(CROP, box="[0, 0, 1e999, 5]"), 422, "finite number"
    ),
    crop_case(
        "a number of five thousand digits",
        raw_json(CROP, min_side_px="1" + "0" * 5000),
        422,
        "number out of range",
    ),
    crop_case("a word for a number", json_of(CROP, min_side_px="wide"), 422, "body.min_side_px"),
    crop_case("three coordinates", json_of(CROP, box=[1, 2, 3]), 422, "body.box", "at least 4"),
    crop_case(
        "a box outside the image", json_of(CROP, box=[400, 0, 500, 50]), 422, "outside the image"
    ),
    crop_case("a reversed box", json_of(CROP, box=[9, 9, 3, 3]), 422, "x1 < x2 and y1 < y2"),
    crop_case("an elongated box", json_of(CROP, box=[0, 0, 64, 0.5]), 422, "ratio over 100"),
    crop_case(
        "a box of a view of unknown size", json_of(CROP, frame="view"), 422, "view: the size of"
    ),
    crop_case(
        "a view without a pixel",
        json_of(CROP, frame="view", view={"width_px": 0, "height_px": 5}, box=[0, 0, 5, 5]),
        422,
        "body.view.width_px: Input should be greater than or equal to 1",
    ),
    crop_case("an unknown frame", json_of(CROP, frame="crop"), 422, "'original' or 'view'"),
    crop_case(
        "limits that contradict each other",
        json_of(CROP, limits={"min_pixels": 10_000, "max_pixels": 784}),
        422,
        "min_pixels must not be over max_pixels",
    ),
    crop_case(
        "limits over what is accepted",
        json_of(CROP, limits={"min_pixels": 784, "max_pixels": 10**9}),
        422,
        "body.limits.max_pixels: Input should be less than or equal to 64000000",
    ),
    crop_case(
        "limits over what this zoom renders",
        json_of(CROP, limits={"min_pixels": 5_000_000, "max_pixels": 6_000_000}),
        422,
        f"crops of at most {MAX_PIXELS} pixels are rendered",
    ),
    crop_case("a name that is no hash", json_of(CROP, image="abc"), 422, "body.image"),
    crop_case("an unknown image", json_of(CROP, image=NO_BLOB), 404, f"no blob {NO_BLOB}"),
    crop_case(
        "a body over the limit", json_of(CROP) + b" " * 16_384, 413, "the limit of 16384 bytes"
    ),
]
PATHS = [
    get_case("an unknown original", f"/v1/images/{NO_BLOB}", 404, f"no blob {NO_BLOB}"),
    get_case("facts of an unknown original", f"/v1/images/{NO_BLOB}/facts", 404, "no blob"),
    get_case("a crop whose name is no hash", "/v1/crops/x", 404, "'x' is not a sha256 hex digest"),
    get_case("a name of a thousand letters", f"/v1/crops/{'x' * 1000}", 404, "not a sha256"),
    get_case("a way out of the store", "/v1/images/..%2f..%2fetc%2fpasswd", 404, "nothing is"),
    get_case("a route that is not there", "/v2/images", 404, "/v2/images", "/openapi.json"),
    get_case("reading where one writes", "/v1/crops", 405, "GET is not accepted here; POST is"),
    get_case(
        "deleting an original",
        "/v1/images/$IMAGE",
        405,
        "DELETE is not accepted here; GET is",
        method="DELETE",
    ),
]
CASES = [*FILES, *ASKED, *CROPS, *PATHS]


@dataclass
class Zoom:
    """A running zoom that has taken in one picture."""

    server: Process
    http: httpx.Client
    image: str
    whole_crop: str

    def assert_alive(self) -> None:
        """The same process still answers, and rightly."""
        assert self.server.process.poll() is None
        assert self.http.get("/health").json() == {"status": "alive"}
        answer = self.http.post("/v1/crops", content=good_crop(self.image))
        assert answer.json()["crop"] == self.whole_crop


def good_crop(image: str) -> bytes:
    return json_of(CROP).replace(b"$IMAGE", image.encode())


@pytest.fixture(scope="module")
def zoom(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Iterator[Zoom]:
    folder = tmp_path_factory.mktemp("zoom")
    limits = ["--max-upload-bytes", str(MAX_UPLOAD_BYTES), "--max-pixels", str(MAX_PIXELS)]
    flags = ["--blob-url", str(folder / "blobs"), *limits]
    with running("zoom", free_port(), folder, *flags) as server:
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as http:
            image = http.post("/v1/images", content=picture("PNG")).json()["image"]
            crop = http.post("/v1/crops", content=good_crop(image)).json()["crop"]
            yield Zoom(server, http, image, crop)
        lines = server.stop()
    assert [line for line in lines if line["level"] not in ("INFO", "WARNING")] == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_zoom_says_what_is_wrong_and_lives(zoom: Zoom, case: BadRequest) -> None:
    check(case, send(zoom.http, case, zoom.image))
    zoom.assert_alive()
    assert zoom.http.get(f"/v1/images/{zoom.image}").content, "nothing that was stored is lost"
