"""The scorer: a request it cannot score is refused with the reason, and it lives."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.bad_input.cases import BadRequest, check, json_of, nested, raw_json, send
from tests.processes import Process, running

MAX_BODY_BYTES = 300_000


def box(x1: float, y1: float, x2: float, y2: float) -> dict[str, float]:
    return {"x1": x1, "y1": y1, "x2": x2, "y2": y2}


def attempt(*boxes: dict[str, float], **changes: Any) -> dict[str, Any]:
    facts = {"is_well_formed": True, "all_calls_parsed": True}
    return {"trajectory_id": "t", "answer": "yes", **facts, "boxes": list(boxes), **changes}


def voter(name: str, answer: str = "yes") -> dict[str, Any]:
    return {"trajectory_id": name, "answer": answer, "boxes": [box(0, 0, 5, 5)]}


SCORE = {
    "gold_answer": "yes",
    "answer_kind": "yes_no",
    "image_size": {"width_px": 10, "height_px": 10},
    "attempts": [attempt(box(0, 0, 5, 5))],
}
CONSENSUS = {
    "answer_kind": "yes_no",
    "image_size": {"width_px": 10, "height_px": 10},
    "attempts": [voter("a"), voter("b")],
}
TALL = {"width_px": 2**20, "height_px": 2**20}
STRIPS = [box(2 * x, 0, 2 * x + 1, 2**20) for x in range(500)]
"""A request of a few kilobytes whose mask has half a billion runs."""


def score_case(name: str, content: bytes, *says: str, status: int = 422) -> BadRequest:
    return BadRequest(name, "/v1/score", content, status, says)


def consensus_case(name: str, content: bytes, *says: str) -> BadRequest:
    return BadRequest(name, "/v1/consensus", content, 422, says)


CASES = [
    score_case("no body", b"", "body: Invalid JSON"),
    score_case("a body cut off", json_of(SCORE)[:40], "body: Invalid JSON: EOF"),
    score_case("lists in lists", nested(8000), "recursion limit"),
    score_case("a body over the limit", bytes(MAX_BODY_BYTES + 1), "300000 bytes", status=413),
    score_case("no gold answer", json_of(SCORE, gold_answer=...), "body.gold_answer: Field req"),
    score_case("an empty gold answer", json_of(SCORE, gold_answer=""), "at least 1 character"),
    score_case(
        "a gold answer without a word",
        json_of(SCORE, gold_answer=" . ", answer_kind="free_text"),
        "gold_answer: must hold a word or a number",
    ),
    score_case(
        "a gold answer that is neither yes nor no",
        json_of(SCORE, gold_answer="maybe"),
        "gold_answer: must be 'yes' or 'no'",
    ),
    score_case(
        "a gold letter without an option",
        json_of(SCORE, gold_answer="C", answer_kind="choice", options=["ring", "disc"]),
        "gold_answer: must be one letter of A to B",
    ),
    score_case(
        "more options than letters",
        json_of(SCORE, gold_answer="A", answer_kind="choice", options=["x"] * 27),
        "body.options: List should have at most 26 items",
    ),
    score_case(
        "an unknown kind of answer",
        json_of(SCORE, answer_kind="essay"),
        "'choice', 'yes_no' or 'free_text'",
    ),
    score_case("no attempt", json_of(SCORE, attempts=[]), "body.attempts", "at least 1 item"),
    score_case(
        "a thousand and twenty-five attempts",
        json_of(SCORE, attempts=[attempt() for _ in range(1025)]),
        "body.attempts: List should have at most 1024 items",
        status=422,
    ),
    score_case(
        "an unknown field inside an attempt",
        json_of(SCORE, attempts=[attempt(anwser="no")]),
        "body.attempts.0.anwser: unknown field; accepted: trajectory_id, answer, is_well_formed",
    ),
    score_case(
        "a box outside the image",
        json_of(SCORE, attempts=[attempt(box(0, 0, 11, 5))]),
        "attempts.0.boxes: every box must lie inside the image",
    ),
    score_case(
        "a reversed box",
        json_of(SCORE, attempts=[attempt(box(5, 0, 2, 5))]),
        "x1 < x2 and y1 < y2",
    ),
    score_case(
        "a box of fractions of pixels",
        json_of(SCORE, attempts=[attempt(box(0.5, 0, 5, 5))]),
        "body.attempts.0.boxes.0.x1: Input should be a valid integer",
    ),
    score_case(
        "a box at ten to the four hundredth",
        json_of(SCORE, attempts=[attempt(box(0, 0, 10**400, 5))]),
        "must lie inside the image",
    ),
    score_case(
        "an image of a billion columns",
        json_of(SCORE, image_size={"width_px": 10**9, "height_px": 10}),
        "image_size: sides of at most 1048576 px are accepted",
    ),
    score_case(
        "a mask of half a billion runs",
        json_of(SCORE, image_size=TALL, attempts=[attempt(*STRIPS)]),
        "524288000 runs; at most 2000000 are written out",
    ),
    score_case(
        "a NaN among the settings",
        raw_json(SCORE, settings='{"iou_threshold": NaN}'),
        "body.settings.iou_threshold",
    ),
    score_case(
        "an infinite penalty",
        raw_json(SCORE, settings='{"format_penalty": -Infinity}'),
        "body.settings.format_penalty: Input should be a finite number",
    ),
    score_case(
        "an unknown arm",
        json_of(SCORE, settings={"arm": "all"}),
        "'cca', 'gated', 'unconditional' or 'none'",
    ),
    score_case(
        "a threshold over one", json_of(SCORE, settings={"iou_threshold": 1.5}), "less than or"
    ),
    consensus_case("no body", b"", "body: Invalid JSON"),
    consensus_case("a gold answer", json_of(CONSENSUS, gold_answer="yes"), "gold_answer: unknown"),
    consensus_case(
        "two attempts of one name",
        json_of(CONSENSUS, attempts=[voter("a"), voter("a")]),
        "trajectory_id 'a' is given 2 times",
    ),
    consensus_case(
        "an image without a pixel",
        json_of(CONSENSUS, image_size={"width_px": 0, "height_px": 10}),
        "body.image_size.width_px: Input should be greater than or equal to 1",
    ),
    BadRequest("reading a score", "/v1/score", b"", 405, ("POST is",), method="GET"),
    BadRequest("a route that is not there", "/score", b"{}", 404, ("/openapi.json",)),
]


@dataclass
class Cca:
    """A running scorer."""

    server: Process
    http: httpx.Client

    def assert_alive(self) -> None:
        """The same process still scores, and rightly."""
        assert self.server.process.poll() is None
        assert self.http.get("/health").json() == {"status": "alive"}
        (reward,) = self.http.post("/v1/score", content=json_of(SCORE)).json()["rewards"]
        assert (reward["total"], reward["consensus_iou"]) == (2.0, 1.0)


@pytest.fixture(scope="module")
def cca(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Iterator[Cca]:
    folder = tmp_path_factory.mktemp("cca")
    flags = ["--max-body-bytes", str(MAX_BODY_BYTES)]
    with running("cca", free_port(), folder, *flags) as server:
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as http:
            yield Cca(server, http)
        lines = server.stop()
    assert [line for line in lines if line["level"] not in ("INFO", "WARNING")] == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.path}: {case.name}")
def test_the_scorer_says_what_is_wrong_and_lives(cca: Cca, case: BadRequest) -> None:
    check(case, send(cca.http, case))
    cca.assert_alive()
