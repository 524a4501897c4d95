"""`POST /v1/cases/{id}/cancel`: a case that is taken back ends for good."""

import signal
import threading
from collections.abc import Callable
from typing import Any

import httpx

from tests.clinic.scripted_policy import ScriptedPolicy, answer
from tests.clinic.test_cases import ask
from tests.clinic.test_events import followed, running_case
from tests.clinic.test_problems import problem_of, wait_for_metric
from tests.clinic.test_recovery import (
    ClinicProcess,
    ask_and_leave,
    process,  # noqa: F401 - a fixture
)


def cancel(clinic: httpx.Client, case_id: str, **headers: str) -> httpx.Response:
    return clinic.post(f"/v1/cases/{case_id}/cancel", headers=headers)


def test_a_running_case_is_cancelled_and_stays_so(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([answer("A")])
    case_id = running_case(clinic, policy)
    assert policy.entered.wait(timeout=10)

    cancelled = cancel(clinic, case_id)
    policy.release.set()
    wait_for_metric(clinic, "medvr_clinic_unfinished_cases 0.0")

    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    assert cancelled.json()["finished_at"] is not None
    assert clinic.get(f"/v1/cases/{case_id}").json() == cancelled.json()
    assert cancel(clinic, case_id).json() == cancelled.json()
    metrics = clinic.get("/metrics").text
    assert 'medvr_clinic_cases_total{status="cancelled"} 1.0' in metrics
    assert 'status="answered"' not in metrics


def test_a_queued_case_is_cancelled_before_it_is_begun(
    start_clinic: Callable[..., httpx.Client], policy: ScriptedPolicy
):
    clinic = start_clinic(max_concurrent_cases=1)
    policy.rehearse([answer("A")])
    first = running_case(clinic, policy)
    assert policy.entered.wait(timeout=10)
    queued = running_case(clinic, policy)

    assert cancel(clinic, queued).json()["status"] == "cancelled"
    policy.release.set()

    assert followed(clinic, first)[-1].body["status"] == "answered"
    assert [event.name for event in followed(clinic, queued)] == ["done"]
    assert len(policy.requests) == 1


def test_who_waits_for_a_cancelled_case_is_sent_it(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([answer("A")])
    policy.release.clear()
    answers: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: answers.append(ask(clinic, k="1").json()))
    thread.start()
    assert policy.entered.wait(timeout=10)
    [line] = clinic.get("/v1/cases").json()["cases"]

    cancelled = cancel(clinic, line["case_id"]).json()
    thread.join(timeout=10)
    policy.release.set()

    assert answers == [cancelled]


def test_followers_are_told(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([answer("A")])
    case_id = running_case(clinic, policy)
    assert policy.entered.wait(timeout=10)

    cancel(clinic, case_id)
    policy.release.set()
    events = followed(clinic, case_id)

    assert [event.name for event in events] == ["started", "done"]
    assert events[-1].body["status"] == "cancelled"


def test_a_slot_is_free_after_a_cancelled_case(
    start_clinic: Callable[..., httpx.Client], policy: ScriptedPolicy
):
    clinic = start_clinic(max_concurrent_cases=1)
    policy.rehearse([answer("A")])
    case_id = running_case(clinic, policy)
    assert policy.entered.wait(timeout=10)
    cancel(clinic, case_id)
    policy.release.set()

    assert ask(clinic, k="1").json()["status"] == "answered"


def test_a_case_that_has_ended_is_not_cancelled(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([answer("A")])
    case = ask(clinic, k="1").json()

    status, title, detail = problem_of(cancel(clinic, case["case_id"]))

    assert (status, title) == (409, "The case has ended")
    assert "is answered" in detail
    assert clinic.get(f"/v1/cases/{case['case_id']}").json() == case
    assert problem_of(cancel(clinic, "nobody"))[:2] == (404, "No such case")


def test_a_cancelled_case_stays_cancelled_in_the_next_process(
    process: ClinicProcess,  # noqa: F811
    policy: ScriptedPolicy,
):
    policy.rehearse([answer("A")])
    thread = ask_and_leave(process, policy)
    [line] = process.client.get("/v1/cases").json()["cases"]
    cancelled = cancel(process.client, line["case_id"]).json()
    process.end(signal.SIGKILL)
    thread.join(timeout=30)
    policy.release.set()
    asked_before = policy.num_entered
    process.start()

    assert process.client.get(line["url"]).json() == cancelled
    assert policy.num_entered == asked_before


def test_cancelling_with_a_key_is_done_once(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([answer("A")])
    case_id = running_case(clinic, policy)
    key = {"idempotency-key": '"cancel-1"'}

    first, second = cancel(clinic, case_id, **key), cancel(clinic, case_id, **key)
    another = cancel(clinic, "another", **key)
    policy.release.set()

    assert (first.status_code, first.content) == (200, second.content)
    assert problem_of(another)[:2] == (422, "Idempotency-Key is already used")
