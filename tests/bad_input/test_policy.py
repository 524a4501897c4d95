"""The policy's own endpoints on a real vLLM: every mistake is named, and the engine goes on."""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
from PIL import Image

from shared.blobs import BlobStore
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
from tests.fixtures_policy import RunningPolicy
from tests.zoom.files import png_claiming

TEXT = {"type": "text", "text": "Say"}
SHOWN = {"type": "image", "image": "$IMAGE"}
TURN = {"segments": [TEXT], "max_tokens": 2}
SCORE = {"segments": [TEXT], "continuation": "A picture."}
MAX_BODY_BYTES = 8 * 2**20


def turn_case(name: str, content: bytes | Chunks, *says: str, status: int = 422) -> BadRequest:
    return BadRequest(name, "/medvr/v1/generate", content, status, says)


def tokens(*ids: int) -> dict[str, object]:
    return {"type": "tokens", "token_ids": list(ids)}


def score_case(name: str, content: bytes, *says: str, status: int = 422) -> BadRequest:
    return BadRequest(name, "/medvr/v1/entropy", content, status, says)


CASES = [
    turn_case("no body", b"", "body: Invalid JSON"),
    turn_case("a body cut off", json_of(TURN)[:20], "body: Invalid JSON: EOF"),
    turn_case("a list", b"[]", "body: Input should be an object"),
    turn_case("half a character", b'{"segments": "\\ud800"}', "body: Invalid JSON"),
    turn_case("bytes that are no UTF-8", b"\xff\xfe", "body: Invalid JSON"),
    turn_case("lists in lists", nested(8000), "recursion limit"),
    turn_case(
        "a body over the limit", bytes(MAX_BODY_BYTES + 1), "limit of 8388608 bytes", status=413
    ),
    turn_case(
        "a body over the limit that does not say so",
        Chunks(bytes(2**20), 9),
        "limit of 8388608 bytes",
        status=413,
    ),
    turn_case("an unknown field", json_of(TURN, top_p=0.9), "top_p: unknown field; accepted: seg"),
    turn_case(
        "an unknown field of a segment",
        json_of(TURN, segments=[{**TEXT, "role": "user"}]),
        "body.segments.0.text.role: unknown field; accepted: type, text",
    ),
    turn_case(
        "an unknown kind of segment",
        json_of(TURN, segments=[{"type": "video"}]),
        "body.segments.0",
        "'text', 'image', 'tokens'",
    ),
    turn_case("no segment", json_of(TURN, segments=[]), "body.segments", "at least 1 item"),
    turn_case(
        "more segments than fit",
        json_of(TURN, segments=[TEXT] * 257),
        "body.segments: List should have at most 256 items",
    ),
    turn_case(
        "an empty text", json_of(TURN, segments=[{"type": "text", "text": ""}]), "at least 1 char"
    ),
    turn_case(
        "a text of thirty thousand words",
        json_of(TURN, segments=[{"type": "text", "text": "word " * 30_000}]),
        "context holds 1024",
    ),
    turn_case(
        "a vision placeholder in a text",
        json_of(TURN, segments=[TEXT, {"type": "text", "text": "<|image_pad|>"}]),
        "segments[1]",
        "send the image as an image segment",
    ),
    turn_case(
        "another vision placeholder",
        json_of(TURN, segments=[{"type": "text", "text": "a<|vision_pad|>"}]),
        "<|vision_pad|>",
    ),
    turn_case(
        "a token beyond the vocabulary",
        json_of(TURN, segments=[tokens(10**6)]),
        "token id 1000000 is outside the vocabulary",
    ),
    turn_case(
        "a token of four hundred digits",
        json_of(TURN, segments=[tokens(10**400)]),
        "segments",
    ),
    turn_case("a negative token", json_of(TURN, segments=[tokens(-1)]), "token_ids.0"),
    turn_case("no token", json_of(TURN, segments=[tokens()]), "token_ids", "at least 1 item"),
    turn_case("a warm temperature", json_of(TURN, temperature=0.7), "temperature 0.7: only 0"),
    turn_case("a hot temperature", json_of(TURN, temperature=2), "body.temperature", "equal to 1"),
    turn_case("a temperature that is no number", raw_json(TURN, temperature="NaN"), "temperature"),
    turn_case("no new token", json_of(TURN, max_tokens=0), "body.max_tokens", "equal to 1"),
    turn_case("no limit of tokens", json_of(TURN, max_tokens=...), "max_tokens: Field required"),
    turn_case("more tokens than fit", json_of(TURN, max_tokens=1024), "context holds 1024"),
    turn_case("a negative seed", json_of(TURN, seed=-1), "body.seed"),
    turn_case(
        "a seed beyond 64 bits", json_of(TURN, seed=2**63), "body.seed: Input should be less"
    ),
    turn_case("an empty stop string", json_of(TURN, stop=[""]), "an empty stop string"),
    turn_case("nine stop strings", json_of(TURN, stop=["a"] * 9), "body.stop", "at most 8 items"),
    turn_case(
        "a stop string for a list", json_of(TURN, stop="</answer>"), "body.stop", "valid array"
    ),
    turn_case(
        "an image whose name is no hash",
        json_of(TURN, segments=[{"type": "image", "image": "ab"}]),
        "body.segments.0.image.image",
    ),
    turn_case(
        "an unknown image",
        json_of(TURN, segments=[{"type": "image", "image": NO_BLOB}]),
        f"no blob {NO_BLOB}",
        status=404,
    ),
    turn_case("more images than are taken", json_of(TURN, segments=[SHOWN] * 9), "takes at most 8"),
    score_case("no continuation", json_of(SCORE, continuation=...), "continuation: Field required"),
    score_case("an empty continuation", json_of(SCORE, continuation=""), "at least 1 item"),
    score_case("a long continuation", json_of(SCORE, continuation=[1] * 513), "at most 512"),
    score_case(
        "a continuation beyond the vocabulary",
        json_of(SCORE, continuation=[10**6]),
        "continuation: token id 1000000 is outside the vocabulary",
    ),
    score_case(
        "a continuation that draws an image",
        json_of(SCORE, continuation="a <|image_pad|>"),
        "vision placeholder",
    ),
    score_case("a limit of tokens", json_of(SCORE, max_tokens=3), "max_tokens: unknown field"),
    BadRequest("writing where one reads", "/medvr/v1/policy", b"{}", 405, ("GET is",)),
    BadRequest("reading a turn", "/medvr/v1/generate", b"", 405, ("POST is",), method="GET"),
    BadRequest("a route that is not there", "/medvr/v1/train", b"{}", 404, ("/medvr/openapi",)),
]


@dataclass
class Policy:
    """The session's vLLM, with one image in its store."""

    server: RunningPolicy
    http: httpx.Client
    image: str
    written: str
    """Greedily, about the image."""

    def assert_alive(self) -> None:
        """It still writes what it wrote at first, about the image it is shown."""
        assert ask(self.http, self.image) == self.written
        assert self.http.get("/ready").json() == {"status": "ready"}


def ask(http: httpx.Client, image: str) -> str:
    body = json_of(TURN, segments=[TEXT, SHOWN], max_tokens=4, temperature=0)
    answer = http.post("/medvr/v1/generate", content=body.replace(b"$IMAGE", image.encode()))
    assert answer.status_code == 200, answer.text
    return "".join(answer.json()["token_texts"])


def picture(width: int, height: int, file_format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, file_format)
    return file.getvalue()


@pytest.fixture(scope="module")
def policy(policy_server: RunningPolicy) -> Iterator[Policy]:
    image = policy_server.blobs.put(picture(112, 112))
    with httpx.Client(base_url=policy_server.url, timeout=120, trust_env=False) as http:
        yield Policy(policy_server, http, image, ask(http, image))
    log = policy_server.log.read_text()
    assert "Traceback" not in log
    assert "unhandled error" not in log


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.path}: {case.name}")
def test_the_policy_says_what_is_wrong_and_lives(policy: Policy, case: BadRequest) -> None:
    check(case, send(policy.http, case, policy.image))
    policy.assert_alive()


IMAGES = {
    "an image of odd sides": (picture(100, 112), "both sides must be multiples of 28"),
    "an image over the model's limit": (picture(476, 448), "the model takes 784 to 200704 pixels"),
    "a JPEG": (picture(112, 112, "JPEG"), "is not a PNG"),
    "a PNG cut off": (picture(112, 112)[:80], "damaged PNG"),
    "a text": (b"nothing of the kind", "is not a PNG"),
    "a PNG that claims ten gigapixels": (png_claiming(100_016, 100_016), "the model takes"),
}


@pytest.mark.parametrize(("data", "says"), IMAGES.values(), ids=IMAGES.keys())
def test_an_image_that_cannot_be_shown_is_named(policy: Policy, data: bytes, says: str) -> None:
    name = BlobStore(policy.server.blob_url).put(data)
    case = turn_case("an image", json_of(TURN, segments=[TEXT, SHOWN]), f"blob {name}", says)
    check(case, send(policy.http, case, name))
    policy.assert_alive()
