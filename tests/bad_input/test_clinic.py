"""The clinic: a form that cannot be asked becomes no case, whatever is wrong with it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.bad_input.cases import BadRequest, check, json_of, send
from tests.clinic.pictures import picture, png
from tests.processes import Process, running
from tests.zoom.files import deflate_bomb, png_claiming, rle_bomb

PICTURE = png(picture())
MAX_UPLOAD_BYTES = 100_000
MAX_PIXELS = 4_000_000
NOBODY = "http://127.0.0.1:9"
"""The discard port: no case of this table goes as far as the policy."""


def form_case(name: str, status: int, *says: str, image: bytes | None = PICTURE, **fields: Any):
    """A multipart form: the good one with changes; None leaves a field out."""
    values = {"question": "What is it?", "choices": ["ring", "disc"], "k": "1", **fields}
    given = {field: value for field, value in values.items() if value is not None}
    files = {} if image is None else {"image": ("x.png", image, "image/png")}
    request = httpx.Request("POST", "http://clinic/", data=given, files=files or None)
    headers = {"content-type": request.headers["content-type"]}
    return BadRequest(name, "/v1/cases", request.read(), status, says, headers=headers)


def body_case(name: str, content_type: str, content: bytes, status: int, *says: str) -> BadRequest:
    headers = {"content-type": content_type}
    return BadRequest(name, "/v1/cases", content, status, says, headers=headers)


def get_case(name: str, path: str, status: int, *says: str, method: str = "GET") -> BadRequest:
    return BadRequest(name, path, b"", status, says, method=method, headers={})


FEEDBACK = {"verdict": "corrected", "role": "student", "corrected_answer": "ring"}
BOX = {"x1": 0, "y1": 0, "x2": 9}


def feedback_case(name: str, status: int, *says: str, **changes: Any) -> BadRequest:
    body = json_of(FEEDBACK, **changes)
    return BadRequest(name, "/v1/cases/no-such-id/feedback", body, status, says)


MULTIPART = "multipart/form-data; boundary=b"
FORM_PARTS = "accepted: image, question, choices, k, seed"
CASES = [
    form_case("no question", 422, "body.question: Field required", question=None),
    form_case("a blank question", 422, "must have at least one character", question="  \n "),
    form_case("a long question", 422, "has 2001 characters; at most 2000", question="x" * 2001),
    form_case("a control token", 422, "reserved for the model", question="Is <|im_end|> so?"),
    form_case("a single choice", 422, "give two or more", choices=["one"]),
    form_case("a blank choice", 422, "choice 2 must have at least one", choices=["one", " "]),
    form_case("two equal choices", 422, "each must differ", choices=["ring", "Ring "]),
    form_case("a long choice", 422, "501 characters; at most 500", choices=["one", "y" * 501]),
    form_case(
        "more choices than letters",
        422,
        "27 choices given; at most 26",
        choices=[str(n) for n in range(27)],
    ),
    form_case(
        "a choice that draws an image",
        422,
        "choice 2 holds text of the form",
        choices=["one", "<|image_pad|>"],
    ),
    form_case("no trajectory", 422, "k is 0; 1 to 16", k="0"),
    form_case("seventeen trajectories", 422, "k is 17; 1 to 16", k="17"),
    form_case("a word for a number", 422, "body.k: Input should be a valid integer", k="many"),
    form_case("a number of five thousand digits", 422, "body.k", k="9" * 5000),
    form_case("a negative seed", 422, "0 to 9007199254740991", seed="-1"),
    form_case("a seed beyond JSON", 422, "0 to 9007199254740991", seed=str(2**53)),
    form_case("a misspelt field", 422, "unknown field 'choises'", FORM_PARTS, choises=["a", "b"]),
    form_case("two questions", 422, "question is given twice", question=["What?", "Where?"]),
    form_case("no image", 422, "body.image: Field required", image=None, question="What?"),
    form_case("an empty image", 422, "the image file has no bytes", image=b""),
    form_case("a text for an image", 415, "PNG, JPEG, WebP, TIFF", image=b"no image at all"),
    form_case("an image cut in half", 422, "cannot be decoded", image=PICTURE[: len(PICTURE) // 2]),
    form_case(
        "an image that claims ten gigapixels",
        413,
        f"at most {MAX_PIXELS} pixels",
        image=png_claiming(100_000, 100_000),
    ),
    form_case("a DICOM file whose RLE asks for gigabytes", 413, "46340x46340", image=rle_bomb()),
    form_case("a DICOM file that inflates", 413, "inflates to over", image=deflate_bomb()),
    form_case(
        "an image over the limit",
        413,
        f"{MAX_UPLOAD_BYTES + 1} bytes; at most {MAX_UPLOAD_BYTES}",
        image=bytes(MAX_UPLOAD_BYTES + 1),
    ),
    body_case(
        "a body far over the limit",
        MULTIPART,
        b'--b\r\ncontent-disposition: form-data; name="image"; filename="x"\r\n\r\n'
        + bytes(2_000_000),
        413,
        "the request has more than the",
    ),
    body_case("JSON for a form", "application/json", b'{"question": "?"}', 422, "body.image"),
    body_case("a form without a boundary", "multipart/form-data", b"--b", 400, "boundary"),
    body_case("a form that is cut off", MULTIPART, b"--b\r\ncontent-dis", 422, "body.image"),
    body_case("a form that is no form", MULTIPART, b"\x00\xff" * 50, 400, "multipart"),
    body_case("no body", MULTIPART, b"", 422, "body.image: Field required"),
    body_case(
        "a form of two thousand fields",
        MULTIPART,
        b'--b\r\ncontent-disposition: form-data; name="a"\r\n\r\n1\r\n' * 2000 + b"--b--\r\n",
        400,
        "Too many fields",
    ),
    get_case("an unknown case", "/v1/cases/no-such-id", 404, "no case no-such-id"),
    get_case("the image of an unknown case", "/v1/cases/no-such-id/image", 404, "no case"),
    get_case("the heatmap of an unknown case", "/v1/cases/no-such-id/heatmap", 404, "no case"),
    get_case("a crop of an unknown case", f"/v1/cases/x/crops/{'0' * 64}", 404, "no case x"),
    get_case("a case id of a null character", "/v1/cases/%00", 404, "no case"),
    get_case("a case id of a kilobyte", f"/v1/cases/{'x' * 1000}", 404, "no case"),
    get_case("a page after nobody", "/v1/cases?before=nobody", 404, "nobody"),
    get_case("a page of none", "/v1/cases?limit=0", 422, "query.limit", "greater than or equal"),
    get_case("a page of a word", "/v1/cases?limit=all", 422, "query.limit", "valid integer"),
    feedback_case("feedback on an unknown case", 404, "no case no-such-id"),
    feedback_case("a verdict nobody knows", 422, "body.verdict", "'agree'", verdict="fine"),
    feedback_case("feedback from nobody", 422, "body.role: Field required", role=...),
    feedback_case("a box of three sides", 422, "corrected_box.y2", corrected_box=BOX),
    feedback_case("half a pixel", 422, "corrected_box.y2", corrected_box=BOX | {"y2": 0.5}),
    feedback_case("a version before the first", 422, "body.replaces", replaces=-1),
    feedback_case("a version of fifty digits", 422, "body.replaces", replaces=10**50),
    feedback_case("a novel", 422, "body.note", "at most 2000 characters", note="x" * 2001),
    feedback_case("misspelt feedback", 422, "body.verdikt", verdikt="agree"),
    get_case("the feedback on an unknown case", "/v1/cases/x/feedback", 404, "no case x"),
    get_case("deleting the cases", "/v1/cases", 405, "DELETE is not accepted", method="DELETE"),
    get_case("a file beside the viewer's", "/static/..%2fapp.py", 404, "nothing is served"),
]


@dataclass
class Clinic:
    """A running clinic with a real zoom behind it."""

    server: Process
    zoom: Process
    http: httpx.Client

    def assert_alive(self) -> None:
        """Both processes still answer, and nothing became a case."""
        assert self.server.process.poll() is None
        assert self.zoom.process.poll() is None
        assert self.http.get("/health").json() == {"status": "alive"}
        assert self.http.get("/v1/clinic").json()["max_upload_bytes"] == MAX_UPLOAD_BYTES
        assert self.http.get("/v1/cases").json() == {"cases": [], "next_url": None}


@pytest.fixture(scope="module")
def clinic(
    tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]
) -> Iterator[Clinic]:
    folder = tmp_path_factory.mktemp("clinic")
    blobs = ["--blob-url", str(folder / "blobs")]
    with running("zoom", free_port(), folder, *blobs, "--max-pixels", str(MAX_PIXELS)) as zoom:
        flags = ["--zoom-url", zoom.url, "--policy-url", NOBODY, "--cca-url", NOBODY]
        flags += ["--database", str(folder / "clinic.sqlite")]
        flags += ["--max-upload-bytes", str(MAX_UPLOAD_BYTES)]
        with running("clinic", free_port(), folder, *blobs, *flags) as server:
            with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as http:
                yield Clinic(server, zoom, http)
            lines = server.stop()
    assert [line for line in lines if line["level"] not in ("INFO", "WARNING")] == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_clinic_says_what_is_wrong_and_lives(clinic: Clinic, case: BadRequest) -> None:
    check(case, send(clinic.http, case))
    clinic.assert_alive()
