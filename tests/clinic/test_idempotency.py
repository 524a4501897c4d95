"""`Idempotency-Key`: a repeated POST is done once, also across the end of a process."""

import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.clinic.pictures import picture, png
from tests.clinic.scripted_policy import ScriptedPolicy, answer
from tests.clinic.test_cases import ask
from tests.clinic.test_problems import problem_of
from tests.clinic.test_recovery import (
    ClinicProcess,
    final_case,
    process,  # noqa: F401 - a fixture
)

KEY = '"8e03978e-40d5-43e8-bc93-6894a57f9324"'


def ask_with(clinic: httpx.Client, key: str = KEY, **form: Any) -> httpx.Response:
    headers = {"idempotency-key": key} | form.pop("headers", {})
    return ask(clinic, headers=headers, **({"k": "1"} | form))


def num_cases(clinic: httpx.Client) -> int:
    return len(clinic.get("/v1/cases").json()["cases"])


def sent(response: httpx.Response) -> tuple[int, str, bytes]:
    return response.status_code, response.headers["location"], response.content


def test_a_repetition_is_sent_the_first_answer(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([answer("A")])

    first, second = ask_with(clinic), ask_with(clinic)

    assert sent(first) == sent(second)
    assert first.status_code == 201
    assert num_cases(clinic) == 1
    assert len(policy.requests) == 1
    metrics = clinic.get("/metrics").text
    assert 'medvr_clinic_keyed_requests_total{outcome="replayed"} 1.0' in metrics


def test_requests_without_a_key_are_each_done(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([answer("A")])
    ask(clinic, k="1")
    ask(clinic, k="1")
    assert num_cases(clinic) == 2


def test_an_answer_that_did_not_wait_is_repeated_as_it_was(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([answer("A")])
    policy.release.clear()
    first = ask_with(clinic, headers={"prefer": "wait=0"})
    policy.release.set()
    final = clinic.get(first.headers["location"])
    while final.json()["status"] == "running":
        final = clinic.get(first.headers["location"])

    second = ask_with(clinic)

    assert sent(first) == sent(second)
    assert (second.status_code, second.headers["preference-applied"]) == (202, "wait=0")


@pytest.mark.parametrize(
    "change",
    [
        {"question": "Another?"},
        {"choices": ["ring", "bar"]},
        {"k": "2"},
        {"seed": "2"},
        {"image": png(picture().rotate(90))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_key_of_another_request_is_refused(
    clinic: httpx.Client, policy: ScriptedPolicy, change: dict[str, Any]
):
    policy.rehearse([answer("A")])
    ask_with(clinic)

    status, title, _ = problem_of(ask_with(clinic, **change))

    assert (status, title) == (422, "Idempotency-Key is already used")
    assert num_cases(clinic) == 1


def test_a_repetition_while_the_first_is_at_work_is_a_conflict(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([answer("A")])
    policy.release.clear()
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(ask_with, clinic)
        assert policy.entered.wait(timeout=10)
        repeated = problem_of(ask_with(clinic))
        changed = problem_of(ask_with(clinic, question="Another?"))
        policy.release.set()
        done = first.result(timeout=30)

    assert repeated[:2] == (409, "A request is outstanding for this Idempotency-Key")
    assert changed[0] == 422
    assert sent(ask_with(clinic)) == sent(done)


def test_of_many_at_once_one_is_done(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([answer("A")])
    with ThreadPoolExecutor(8) as threads:
        statuses = [r.status_code for r in threads.map(lambda _: ask_with(clinic), range(8))]

    assert set(statuses) <= {201, 409}
    assert 201 in statuses
    assert num_cases(clinic) == 1


@pytest.mark.parametrize(
    "key",
    ["", '""', "two words", '"a"b"', '"back\\\\slash"', '"' + "x" * 256 + '"', "x" * 256, "ä"],
)
def test_a_malformed_key_is_refused(clinic: httpx.Client, key: str):
    response = ask(clinic, headers=[(b"idempotency-key", key.encode())])

    assert problem_of(response)[:2] == (400, "Idempotency-Key is malformed")
    assert num_cases(clinic) == 0


def test_two_keys_are_refused(clinic: httpx.Client):
    headers = [("idempotency-key", '"a"'), ("idempotency-key", '"b"')]
    assert problem_of(ask(clinic, headers=headers))[0] == 400


def test_a_key_without_quotes_is_the_same_key(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([answer("A")])
    assert sent(ask_with(clinic, '"abc-1"')) == sent(ask_with(clinic, "abc-1"))


def test_a_refused_request_may_be_corrected_under_its_key(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([answer("A")])

    assert ask_with(clinic, image=b"no image").status_code == 415
    assert ask_with(clinic).status_code == 201


def test_a_key_expires(start_clinic: Callable[..., httpx.Client], policy: ScriptedPolicy):
    clinic = start_clinic(idempotency_key_s=1e-6)
    policy.rehearse([answer("A")])

    first, second = ask_with(clinic), ask_with(clinic, question="Another?")

    assert (first.status_code, second.status_code) == (201, 201)
    assert num_cases(clinic) == 2


def test_the_next_process_sends_the_same_answer(
    start_clinic: Callable[..., httpx.Client], policy: ScriptedPolicy
):
    policy.rehearse([answer("A")])
    first = ask_with(start_clinic())

    again = start_clinic()

    assert sent(ask_with(again)) == sent(first)
    assert problem_of(ask_with(again, seed="5"))[0] == 422


def test_neither_key_nor_event_reaches_the_logs_or_the_metrics(
    process: ClinicProcess,  # noqa: F811
    policy: ScriptedPolicy,
):
    policy.rehearse([answer("zebrafinch", thought="a zebrafinch?")])
    case = ask_with(process.client, '"zebrafinch"', choices=None).json()
    ask_with(process.client, '"zebrafinch"', choices=None)
    ask_with(process.client, '"zebrafinch"', question="Another zebrafinch?")
    stream = process.client.get(f"/v1/cases/{case['case_id']}/events").text
    metrics = process.client.get("/metrics").text

    logged = process.end(signal.SIGTERM)

    assert "a zebrafinch?" in stream
    assert 'medvr_clinic_events_total{event="turn"} 1.0' in metrics
    assert "zebrafinch" not in metrics + logged


def test_after_a_kill_a_repetition_finds_the_case_that_was_made(
    process: ClinicProcess,  # noqa: F811
    policy: ScriptedPolicy,
):
    policy.rehearse([answer("A")])
    policy.release.clear()
    with ThreadPoolExecutor(1) as thread:
        broken = thread.submit(ask_with, process.client)
        assert policy.entered.wait(timeout=30)
        process.end(signal.SIGKILL)
        assert isinstance(broken.exception(timeout=30), httpx.TransportError)
    process.start()
    outstanding = problem_of(ask_with(process.client))
    policy.release.set()
    case = final_case(process)

    repeated = ask_with(process.client)

    assert outstanding[0] == 409
    assert (repeated.status_code, repeated.json()) == (201, case)
    assert num_cases(process.client) == 1
