"""Rows of the tables: what is sent, with which status it is refused, and which words say why.

`$IMAGE` in a path or a body stands for an image the service knows.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

JSON = {"content-type": "application/json"}
NO_BLOB = "0" * 64


@dataclass(frozen=True)
class BadRequest:
    """One row: a request that must be refused."""

    name: str
    """A sentence's worth of what is wrong; the id of the test."""
    path: str
    content: "bytes | Chunks"
    status: int
    says: tuple[str, ...]
    """Words that the detail must hold: the fault, and what is accepted."""
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=lambda: JSON)


@dataclass(frozen=True)
class Chunks:
    """A body sent in pieces, its length not announced."""

    piece: bytes
    number: int

    def __iter__(self) -> Iterator[bytes]:
        for _ in range(self.number):
            yield self.piece


def send(http: httpx.Client, case: BadRequest, image: str = "") -> httpx.Response:
    """The answer to a row."""
    content = case.content
    body = content.replace(b"$IMAGE", image.encode()) if isinstance(content, bytes) else content
    path = case.path.replace("$IMAGE", image)
    return http.request(case.method, path, content=body, headers=case.headers)


def check(case: BadRequest, response: httpx.Response) -> None:
    """A problem document of the expected status that says what was wrong, briefly."""
    assert response.status_code == case.status, response.text[:500]
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == case.status
    assert problem["title"]
    detail = problem["detail"]
    missing = [words for words in case.says if words not in detail]
    assert not missing, f"{missing} not in {detail!r}"
    assert len(detail) < 1500
    for noise in ("Traceback", "errors.pydantic.dev", "site-packages"):
        assert noise not in detail


def json_of(defaults: dict[str, Any], **changes: Any) -> bytes:
    """A good body with changes; `...` leaves a member out."""
    members = {k: v for k, v in {**defaults, **changes}.items() if v is not ...}
    return json.dumps(members).encode()


def raw_json(defaults: dict[str, Any], **changes: str) -> bytes:
    """A good body in which members are replaced by raw text, which need not be JSON."""
    rest = {k: v for k, v in defaults.items() if k not in changes}
    members = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in rest.items()]
    members += [f"{json.dumps(name)}: {raw}" for name, raw in changes.items()]
    return ("{" + ", ".join(members) + "}").encode()


def nested(depth: int) -> bytes:
    """Lists in lists."""
    return b"[" * depth + b"]" * depth
