"""`Prefer: wait=N`: the finished case in time, or 202 and where it will be."""

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from services.clinic.preference import Wait, wait_preference
from tests.clinic.scripted_policy import ScriptedPolicy, answer
from tests.clinic.test_cases import ask


def ask_preferring(clinic: httpx.Client, prefer: str, **form: Any) -> httpx.Response:
    return ask(clinic, headers={"prefer": prefer}, k="1", **form)


def followed(clinic: httpx.Client, url: str) -> dict[str, Any]:
    for _ in range(200):
        case: dict[str, Any] = clinic.get(url).json()
        if case["status"] != "running":
            return case
        time.sleep(0.05)
    pytest.fail("the case stayed running")


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        (["wait=10"], 10),
        (["Wait = 10"], 10),
        (['wait="10"'], 10),
        (["respond-async, wait=10"], 10),
        (['foo; bar="a, wait=3", wait=10; baz'], 10),
        (["respond-async", "wait=7"], 7),
        (["wait=3, wait=10"], 3),
        (["wait=0"], 0),
        ([], None),
        (["respond-async"], 0),
        (["respond-async; foo"], 0),
        (["handling=lenient, Respond-Async"], 0),
        (["wait=soon, respond-async"], 0),
        (["respond-asynchronously"], None),
        (["wait"], None),
        (["wait="], None),
        (["wait=-1"], None),
        (["wait=1.5"], None),
        (["wait=soon"], None),
        (["wait=soon, wait=10"], None),
        (["wait=1 0"], None),
        (["wait=9999999999"], None),
        (["waits=10"], None),
        (['"wait=10'], None),
        (["@, wait=10"], None),
    ],
)
def test_the_wait_is_read_as_rfc_7240_says(lines: list[str], seconds: int | None):
    wait = wait_preference(lines, 60)

    assert (None if wait is None else wait.seconds) == seconds


def test_what_was_followed_is_what_is_said():
    assert wait_preference(["respond-async, wait=100"], 60) == Wait(60, "wait=60")
    assert wait_preference(["respond-async"], 60) == Wait(0, "respond-async")


def test_a_case_that_ends_in_time_is_the_answer(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([answer("A")])

    response = ask_preferring(clinic, "wait=30")
    case = response.json()

    assert (response.status_code, case["status"], case["answer"]) == (201, "answered", "A")
    assert response.headers["preference-applied"] == "wait=30"
    assert response.headers["location"] == f"/v1/cases/{case['case_id']}"


def test_a_case_that_takes_longer_goes_on_under_its_location(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([answer("A")])
    policy.release.clear()

    asked_at = time.monotonic()
    response = ask_preferring(clinic, "wait=1")
    took_s = time.monotonic() - asked_at
    policy.release.set()

    assert (response.status_code, response.json()["status"]) == (202, "running")
    assert response.headers["preference-applied"] == "wait=1"
    assert 0.9 < took_s < 5
    assert followed(clinic, response.headers["location"])["answer"] == "A"
    assert 'medvr_clinic_waits_total{outcome="running"} 1.0' in clinic.get("/metrics").text


def test_no_wait_at_all_is_answered_at_once(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([answer("A")])
    policy.release.clear()

    response = ask_preferring(clinic, "wait=0")
    policy.release.set()

    assert response.status_code == 202
    assert followed(clinic, response.headers["location"])["status"] == "answered"


def test_who_wants_the_answer_later_is_not_kept_waiting(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([answer("A")])
    policy.release.clear()

    response = ask_preferring(clinic, "respond-async")
    policy.release.set()

    assert (response.status_code, response.json()["status"]) == (202, "running")
    assert response.headers["preference-applied"] == "respond-async"
    assert followed(clinic, response.headers["location"])["status"] == "answered"


def test_a_wait_over_the_longest_is_the_longest(
    start_clinic: Callable[..., httpx.Client], policy: ScriptedPolicy
):
    clinic = start_clinic(max_wait_s=1)
    policy.rehearse([answer("A")])
    policy.release.clear()

    response = ask_preferring(clinic, "wait=100000")
    policy.release.set()

    assert (response.status_code, response.headers["preference-applied"]) == (202, "wait=1")


@pytest.mark.parametrize("prefer", ["wait=soon", "wait=-1", "return=minimal"])
def test_what_is_no_wait_is_ignored(clinic: httpx.Client, policy: ScriptedPolicy, prefer: str):
    policy.rehearse([answer("A")])

    response = ask_preferring(clinic, prefer)

    assert (response.status_code, response.json()["status"]) == (201, "answered")
    assert "preference-applied" not in response.headers


def test_a_form_that_cannot_be_asked_is_refused_whatever_is_preferred(clinic: httpx.Client):
    assert ask_preferring(clinic, "wait=0", question=" ").status_code == 422
