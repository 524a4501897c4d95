"""Generated requests: whatever fits, or just does not fit, a service's own OpenAPI document.

Every answer is one the document describes, in its form, and none is a server's error. The requests
are the same in every run.
"""

import contextlib
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, given, settings
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.clinic.pictures import picture, png
from tests.fixtures_policy import RunningPolicy
from tests.processes import Process, running

# Not whether what does not fit is refused: a form's values are texts whatever was meant, and 413
# is no refusal to that check. The tables say what is refused, and how.
CHECKS = [
    allow_header_conformance,
    content_type_conformance,
    not_a_server_error,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
]
BOUNDED = settings(
    max_examples=25,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
PICTURE = png(picture())
Prepare = Callable[[dict[str, Any]], None]
"""Puts into a generated body what no generator finds: the name of an image that is there."""


def assert_clean_end(server: Process) -> None:
    """It still lives, and ends with nothing in its log that is worse than a warning."""
    assert server.process.poll() is None
    lines = server.stop()
    assert [line for line in lines if line["level"] not in ("INFO", "WARNING")] == []


@contextlib.contextmanager
def clean(name: str, port: int, folder: Path, *flags: str) -> Iterator[Process]:
    """A service that must be in order at the end."""
    with running(name, port, folder, *flags) as server:
        yield server
        assert_clean_end(server)


def modes_of(operation: schemathesis.APIOperation) -> list[GenerationMode]:
    """What fits, and what does not fit; bytes fit whatever they are, and so does a path."""
    bodies = [body.media_type for body in operation.body]
    can_be_wrong = bool(operation.query) or any(b != "application/octet-stream" for b in bodies)
    return [GenerationMode.POSITIVE, *([GenerationMode.NEGATIVE] if can_be_wrong else [])]


def exercise(document_url: str, prepare: Prepare) -> Counter[str]:
    """Send generated requests to every operation of a document; how many each was sent."""
    schema = schemathesis.openapi.from_url(document_url)
    num_sent: Counter[str] = Counter()
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in modes_of(operation):
            cases = operation.as_strategy(generation_mode=mode)

            @BOUNDED
            @given(case=cases)
            def answers_as_documented(case: schemathesis.Case) -> None:
                num_sent[case.operation.label] += 1
                if isinstance(case.body, dict):
                    prepare(case.body)
                case.call_and_validate(checks=CHECKS)

            answers_as_documented()
    return num_sent


def known_image(name: str) -> Prepare:
    """Every well-formed name of an image becomes this one's."""

    def put(body: dict[str, Any]) -> None:
        segments = body.get("segments")
        listed = segments if isinstance(segments, list) else []
        for part in [body, *(s for s in listed if isinstance(s, dict))]:
            if re.fullmatch("[0-9a-f]{64}", str(part.get("image"))):
                part["image"] = name

    return put


def with_picture(form: dict[str, Any]) -> None:
    """A form that would fit if its image were one gets one, and a k that is often in its range.

    Other fields than the form's own, which the document allows and the clinic does not, go.
    """
    if isinstance(form.get("images"), list) and form["images"] and "questions" not in form:
        for name in set(form) - {"images", "question", "k"}:
            del form[name]
        form["images"] = [PICTURE] * len(form["images"])
        form["question"] = form.get("question") or "What is it?"
    elif isinstance(form.get("image"), str) and form.get("question"):
        for name in set(form) - {"image", "question", "choices", "k", "seed", "verify"}:
            del form[name]
        form["image"] = PICTURE
    else:
        return
    if type(form.get("k")) is int:
        form["k"] %= 20


def as_it_is(_: dict[str, Any]) -> None:
    """The body as it was generated."""


def test_zoom_answers_as_its_document_says(tmp_path: Path, free_port: Callable[[], int]) -> None:
    with clean("zoom", free_port(), tmp_path, "--blob-url", str(tmp_path / "blobs")) as server:
        answer = httpx.post(f"{server.url}/v1/images", content=PICTURE, trust_env=False)
        num_sent = exercise(f"{server.url}/openapi.json", known_image(answer.json()["image"]))
    assert len(num_sent) == 8
    assert num_sent["POST /v1/crops"] >= 25
    assert num_sent["POST /v1/blanks"] >= 25


def test_the_scorer_answers_as_its_document_says(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    with clean("cca", free_port(), tmp_path) as server:
        num_sent = exercise(f"{server.url}/openapi.json", as_it_is)
    assert len(num_sent) == 4
    assert num_sent["POST /v1/score"] >= 25


def test_the_policy_answers_as_its_document_says(policy_server: RunningPolicy) -> None:
    file = io.BytesIO()
    Image.new("RGB", (112, 112)).save(file, "PNG")
    put_image = known_image(policy_server.blobs.put(file.getvalue()))

    def prepare(body: dict[str, Any]) -> None:
        put_image(body)
        if type(body.get("max_tokens")) is int:
            body["max_tokens"] = min(body["max_tokens"], 8)

    num_sent = exercise(f"{policy_server.url}/medvr/openapi.json", prepare)
    assert set(num_sent) == {"POST /v1/generate", "POST /v1/entropy", "GET /v1/policy"}
    assert num_sent["POST /v1/generate"] >= 25
    assert httpx.get(f"{policy_server.url}/ready", trust_env=False).status_code == 200
    assert "Traceback" not in policy_server.log.read_text()


def test_the_clinic_answers_as_its_document_says(
    policy_server: RunningPolicy, tmp_path: Path, free_port: Callable[[], int], valkey_url: str
) -> None:
    """Forms that fit carry a picture, so that they become cases which the real policy works."""
    blobs = ["--blob-url", policy_server.blob_url]
    with (
        clean("zoom", free_port(), tmp_path, *blobs) as zoom,
        clean("cca", free_port(), tmp_path) as cca,
    ):
        flags = ["--zoom-url", zoom.url, "--cca-url", cca.url, "--policy-url", policy_server.url]
        flags += ["--database", str(tmp_path / "clinic.sqlite"), "--max-turn-tokens", "16"]
        flags += ["--redis-url", valkey_url]
        with clean("clinic", free_port(), tmp_path, *blobs, *flags) as server:
            num_sent = exercise(f"{server.url}/openapi.json", with_picture)
            cases = httpx.get(f"{server.url}/v1/cases", trust_env=False).json()["cases"]
            jobs = httpx.get(f"{server.url}/v1/jobs", trust_env=False).json()["jobs"]
    assert num_sent["POST /v1/cases"] >= 25
    assert len(num_sent) == 19
    assert cases, "some forms were asked"
    assert jobs, "some of many questions were, too"
