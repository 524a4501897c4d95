"""`GET /v1/cases/{id}/events`: a case told as it runs, without loss or repetition."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any, NamedTuple

import httpx
import pytest
from pydantic import TypeAdapter

from shared.api.case_events import CaseEvent
from tests.clinic.scripted_policy import ScriptedPolicy, answer, look
from tests.clinic.test_cases import IN_VIEW, ask, two_against_one
from tests.clinic.test_problems import problem_of, wait_for_metric
from tests.clinic.test_recovery import (
    ClinicProcess,
    ask_and_leave,
    process,  # noqa: F401 - a fixture
)

StartClinic = Callable[..., httpx.Client]


class Told(NamedTuple):
    """One event as it came."""

    number: int
    name: str
    body: dict[str, Any]


def told(lines: Iterator[str]) -> Iterator[Told]:
    """The events among the lines of a stream."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield Told(int(fields["id"]), fields["event"], json.loads(fields["data"]))
            fields = {}
        else:
            fields = {}


def followed(clinic: httpx.Client, case_id: str, after: int | None = None) -> list[Told]:
    """All events of a case until its stream ends."""
    headers = {} if after is None else {"last-event-id": str(after)}
    with clinic.stream("GET", f"/v1/cases/{case_id}/events", headers=headers) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        return list(told(response.iter_lines()))


def running_case(clinic: httpx.Client, policy: ScriptedPolicy, k: str = "1") -> str:
    """A case that waits for the policy."""
    policy.release.clear()
    response = ask(clinic, headers={"prefer": "wait=0"}, k=k)
    assert response.status_code == 202
    return response.json()["case_id"]


def test_a_trajectory_is_told_turn_by_turn(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([look(IN_VIEW, "bright on the right"), answer("A")])
    case = ask(clinic, k="1").json()

    events = followed(clinic, case["case_id"])

    assert [event.name for event in events] == [
        *("started", "turn", "uncertainty", "zoom", "turn", "trajectory", "answer", "done")
    ]
    assert [event.number for event in events] == list(range(1, 9))
    _, turn, uncertainty, zoom, last_turn, trajectory, answered, done = (e.body for e in events)
    assert (turn["turn"], turn["thought"]) == (0, "bright on the right")
    assert uncertainty["baseline_entropy_nats"] == pytest.approx(0.25)
    assert uncertainty["tool_entropy_nats"] == pytest.approx(1.5)
    assert uncertainty["entropy_increase_nats"] == pytest.approx(1.25)
    assert zoom["box"] == {"x1": 168, "y1": 84, "x2": 220, "y2": 140}
    assert (last_turn["turn"], last_turn["answer"]) == (1, "A")
    assert (trajectory["answer"], trajectory["stop_reason"]) == ("A", "answered")
    assert (answered["answer"], answered["option_text"]) == ("A", "ring")
    assert done["status"] == "answered"
    for event in events:
        parsed: Any = TypeAdapter(CaseEvent).validate_python(event.body)
        assert parsed.event == event.name


def test_what_is_told_is_what_the_case_says(clinic: httpx.Client, policy: ScriptedPolicy):
    two_against_one(policy)
    case = ask(clinic).json()
    shown = case["shown_trajectory_id"]

    events = followed(clinic, case["case_id"])

    of_shown = [e for e in events if e.body.get("trajectory_id") == shown]
    zooms = [e.body for e in of_shown if e.name == "zoom"]
    unsure = [e.body for e in of_shown if e.name == "uncertainty"]
    assert [z["crop"] for z in zooms] == [z["crop"] for z in case["evidence"]]
    assert [z["box_normalised"] for z in zooms] == [z["box_normalised"] for z in case["evidence"]]
    assert [u["entropy_increase_nats"] for u in unsure] == [
        z["entropy_increase_nats"] for z in case["evidence"]
    ]
    ended = {e.body["trajectory_id"]: e.body["answer"] for e in events if e.name == "trajectory"}
    assert ended == {a["trajectory_id"]: a["answer"] for a in case["attempts"]}


def test_every_crop_that_is_told_can_be_seen(clinic: httpx.Client, policy: ScriptedPolicy):
    two_against_one(policy)
    case = ask(clinic).json()

    zooms = [e.body for e in followed(clinic, case["case_id"]) if e.name == "zoom"]

    assert len(zooms) == 3  # also of the trajectory that is not shown
    for zoom in zooms:
        crop = clinic.get(zoom["crop_url"])
        assert sha256(crop.content).hexdigest() == zoom["crop"]
    assert clinic.get(f"/v1/cases/{case['case_id']}/crops/{'0' * 64}").status_code == 404


def test_a_crop_can_be_seen_while_its_case_runs(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([look(IN_VIEW), answer("A")])
    policy.hold_after = 1
    case = ask(clinic, headers={"prefer": "wait=0"}, k="1").json()

    with clinic.stream("GET", f"/v1/cases/{case['case_id']}/events") as response:
        zoom = next(event for event in told(response.iter_lines()) if event.name == "zoom")
    crop = clinic.get(zoom.body["crop_url"])
    still = clinic.get(f"/v1/cases/{case['case_id']}").json()["status"]
    policy.release.set()

    assert sha256(crop.content).hexdigest() == zoom.body["crop"]
    assert still == "running"


def test_events_come_while_the_case_runs_and_the_stream_ends_with_it(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([answer("A")])
    case_id = running_case(clinic, policy)
    names: list[str] = []

    with clinic.stream("GET", f"/v1/cases/{case_id}/events") as response:
        for event in told(response.iter_lines()):
            names.append(event.name)
            if event.name == "started":
                assert clinic.get(f"/v1/cases/{case_id}").json()["status"] == "running"
                policy.release.set()

    assert names == ["started", "turn", "trajectory", "answer", "done"]


@pytest.mark.parametrize("after", [0, 1, 4, 7])
def test_a_follower_goes_on_after_its_last_event(
    clinic: httpx.Client, policy: ScriptedPolicy, after: int
):
    policy.rehearse([look(IN_VIEW), answer("A")])
    case_id = ask(clinic, k="1").json()["case_id"]

    assert followed(clinic, case_id, after) == followed(clinic, case_id)[after:]


def test_a_follower_that_has_it_all_is_told_to_stay_away(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([answer("A")])
    case_id = ask(clinic, k="1").json()["case_id"]
    last = followed(clinic, case_id)[-1].number
    url = f"/v1/cases/{case_id}/events"

    response = clinic.get(url, headers={"last-event-id": str(last)})

    assert (response.status_code, response.content) == (204, b"")
    beyond = clinic.get(url, headers={"last-event-id": str(last + 1)})
    assert problem_of(beyond)[:2] == (422, "Unknown Last-Event-ID")
    assert clinic.get(url, headers={"last-event-id": "soon"}).status_code == 422
    assert problem_of(clinic.get("/v1/cases/nobody/events"))[0] == 404


def test_a_follower_that_breaks_off_again_and_again_misses_nothing(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([look(IN_VIEW), look([10, 10, 40, 40]), answer("A")])
    case_id = running_case(clinic, policy, k="4")
    policy.release.set()
    seen: list[Told] = []

    while not seen or seen[-1].name != "done":
        headers = {"last-event-id": str(seen[-1].number)} if seen else {}
        with clinic.stream("GET", f"/v1/cases/{case_id}/events", headers=headers) as response:
            event = next(told(response.iter_lines()), None)
            if event is not None:
                seen.append(event)

    assert seen == followed(clinic, case_id)
    assert [event.number for event in seen] == list(range(1, len(seen) + 1))
    assert [event.name for event in seen].count("zoom") == 8


def test_a_quiet_stream_has_heartbeats_and_ends_after_its_time(
    start_clinic: StartClinic, policy: ScriptedPolicy
):
    clinic = start_clinic(heartbeat_s=0.1, event_stream_s=1)
    policy.rehearse([answer("A")])
    case_id = running_case(clinic, policy)

    asked_at = time.monotonic()
    text = clinic.get(f"/v1/cases/{case_id}/events").text
    took_s = time.monotonic() - asked_at
    policy.release.set()

    assert text.startswith("retry: 1000\n\n")
    assert text.count(": running\n\n") >= 5
    assert "event: done" not in text
    assert 0.9 < took_s < 5


def test_streams_over_the_limit_are_refused(start_clinic: StartClinic, policy: ScriptedPolicy):
    clinic = start_clinic(max_event_streams=1, heartbeat_s=0.1)
    policy.rehearse([answer("A")])
    case_id = running_case(clinic, policy)
    url = f"/v1/cases/{case_id}/events"
    with clinic.stream("GET", url) as response:
        lines = response.iter_lines()  # held: without it the stream is closed
        assert next(lines) == "retry: 1000"
        assert problem_of(clinic.get(url))[:2] == (503, "Too many event streams")
        wait_for_metric(clinic, "medvr_clinic_event_streams 1.0")
    policy.release.set()

    wait_for_metric(clinic, "medvr_clinic_event_streams 0.0")
    assert followed(clinic, case_id)[-1].name == "done"


def test_a_case_that_fails_tells_why(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([answer("A")])
    policy.fail_with = 400
    case = ask(clinic, k="1").json()

    *_, error, done = followed(clinic, case["case_id"])

    assert error[1:] == ("error", {"event": "error", **case["failure"]})
    assert done.body["status"] == "failed"


def test_a_case_that_abstains_tells_how(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([answer("A")], [answer("B")])
    case_id = ask(clinic, k="2").json()["case_id"]

    *_, answered, done = followed(clinic, case_id)

    assert (answered.body["answer"], answered.body["abstention"]) == (None, "tied")
    assert done.body["status"] == "abstained"


def test_a_killed_clinic_goes_on_telling_after_its_restart(
    process: ClinicProcess,  # noqa: F811
    policy: ScriptedPolicy,
):
    policy.rehearse([answer("A")])
    thread = ask_and_leave(process, policy)
    [line] = process.client.get("/v1/cases").json()["cases"]
    with process.client.stream("GET", f"{line['url']}/events") as response:
        first = next(told(response.iter_lines()))
    process.end(signal.SIGKILL)
    thread.join(timeout=30)
    policy.release.set()
    process.start()

    rest = followed(process.client, line["case_id"], first.number)

    assert (first.number, first.name) == (1, "started")
    assert [event.name for event in rest] == ["started", "turn", "trajectory", "answer", "done"]
    assert [event.number for event in rest] == [2, 3, 4, 5, 6]


def test_a_clean_stop_ends_the_streams_and_the_next_process_goes_on(
    process: ClinicProcess,  # noqa: F811
    policy: ScriptedPolicy,
):
    policy.rehearse([answer("A")])
    case_id = running_case(process.client, policy)
    assert policy.entered.wait(timeout=30)
    with process.client.stream("GET", f"/v1/cases/{case_id}/events") as response:
        lines = response.iter_lines()
        first = next(told(lines))
        asked_at = time.monotonic()
        logged = process.end(signal.SIGTERM)
        took_s = time.monotonic() - asked_at
    policy.release.set()
    process.start()

    assert took_s < 8  # it waits 10 s for requests that do not end
    assert "Traceback" not in logged
    assert followed(process.client, case_id, first.number)[-1].body["status"] == "answered"
