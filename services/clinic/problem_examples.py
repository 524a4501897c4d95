"""How answers are documented: examples by status, and the problems that several routes share."""

from copy import deepcopy
from http import HTTPStatus
from typing import Any

from services.clinic.examples import EXAMPLE_ID
from shared.service.problems import PROBLEM_SCHEMA

Responses = dict[int | str, dict[str, Any]]
"""FastAPI's `responses`: status → its documentation."""


def problems(**details: tuple[HTTPStatus, str, str]) -> Responses:
    """Documented problem documents: name → (status, title, detail); several may share a status."""
    documented: Responses = {}
    for name, (status, title, detail) in details.items():
        entry = documented.setdefault(
            status.value,
            {
                "description": title,
                "content": {"application/problem+json": {"schema": PROBLEM_SCHEMA}},
            },
        )
        value = {"type": "about:blank", "title": title, "status": status.value, "detail": detail}
        content = entry["content"]["application/problem+json"]
        content.setdefault("examples", {})[name] = {"value": value}
    return documented


UNKNOWN_CASE = problems(
    unknown_case=(HTTPStatus.NOT_FOUND, "No such case", f"no case {EXAMPLE_ID}")
)


SUBMISSION_PROBLEMS = problems(
    too_large=(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "The image file is too large",
        "the image file has 70000000 bytes; at most 67108864 are accepted",
    ),
    bad_image=(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "The image cannot be used",
        "Unsupported image format: the content is no known image; "
        "PNG, JPEG, WebP, TIFF, DICOM and NIfTI files are accepted",
    ),
    no_question=(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "Request does not validate",
        "body.question: Field required",
    ),
    too_many_choices=(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "Too many choices",
        "27 choices given; at most 26 are accepted",
    ),
    no_frame=(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "The image cannot be used",
        "Image cannot be used: the DICOM file has 24 frames and frame is missing; "
        "frame=1 to frame=24 is accepted",
    ),
    zoom_down=(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "A dependency failed",
        "zoom: http://zoom:8101 did not answer (ConnectError: refused)",
    ),
)


KEY_PROBLEMS = problems(
    malformed_key=(
        HTTPStatus.BAD_REQUEST,
        "Idempotency-Key is malformed",
        "accepted: one string of 1 to 255 printable ASCII characters in double quotes",
    ),
    outstanding=(
        HTTPStatus.CONFLICT,
        "A request is outstanding for this Idempotency-Key",
        "the first request with this key is still being worked on; repeat it later",
    ),
    key_of_another=(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "Idempotency-Key is already used",
        "this key belongs to another request; a new request needs a new key",
    ),
)


CANCEL_PROBLEMS = problems(
    unknown_case=(HTTPStatus.NOT_FOUND, "No such case", f"no case {EXAMPLE_ID}"),
    ended=(
        HTTPStatus.CONFLICT,
        "The case has ended",
        f"case {EXAMPLE_ID} is answered; only a running case can be cancelled",
    ),
)


FOLLOW_UP_PROBLEMS = problems(
    unknown_case=(HTTPStatus.NOT_FOUND, "No such case", f"no case {EXAMPLE_ID}"),
    no_answer=(
        HTTPStatus.CONFLICT,
        "The case has no answer to go on from",
        f"case {EXAMPLE_ID} is abstained; only an answered case can be followed",
    ),
    too_long=(
        HTTPStatus.CONFLICT,
        "The conversation is too long",
        "17 questions were asked; at most 16 can be followed",
    ),
    too_large=(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "Request Entity Too Large",
        "the request has more than the 68157440 bytes that are accepted",
    ),
    no_form=(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "Unsupported content type",
        "accepted: application/json, application/x-www-form-urlencoded, multipart/form-data",
    ),
    no_question=(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "Request does not validate",
        "body.question: Field required",
    ),
)


FOLLOW_PROBLEMS = problems(
    unknown_case=(HTTPStatus.NOT_FOUND, "No such case", f"no case {EXAMPLE_ID}"),
    unknown_event=(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "Unknown Last-Event-ID",
        f"case {EXAMPLE_ID} has not told an event of this number",
    ),
    too_many=(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "Too many event streams",
        "64 are being read; come back later",
    ),
)


def merged(*documented: Responses) -> Responses:
    """Documented problems together; those of one status become its examples."""
    together: Responses = {}
    for responses in documented:
        for status, entry in responses.items():
            known = together.setdefault(status, deepcopy(entry))
            examples = known["content"]["application/problem+json"]["examples"]
            examples.update(entry["content"]["application/problem+json"]["examples"])
    return together


def json_example(description: str, example: Any) -> dict[str, Any]:
    """A documented JSON response with its example model."""
    body = example.model_dump(mode="json")
    return {"description": description, "content": {"application/json": {"example": body}}}


def json_examples(description: str, **examples: Any) -> dict[str, Any]:
    """A documented JSON response with several example models, by name."""
    values = {name: {"value": e.model_dump(mode="json")} for name, e in examples.items()}
    return {"description": description, "content": {"application/json": {"examples": values}}}


def png_example(description: str) -> dict[str, Any]:
    """A documented PNG response; the example is the eight bytes every PNG starts with."""
    schema = {"type": "string", "format": "binary"}
    return {
        "description": description,
        "content": {"image/png": {"schema": schema, "example": "\x89PNG\r\n\x1a\n…"}},
    }
