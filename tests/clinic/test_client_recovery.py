"""The clients while connections break and the clinic is killed: nothing twice, nothing lost."""

import asyncio
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from shared.api.case_events import DoneEvent
from shared.api.clinic import CaseStatus
from shared.clients.clinic import ClinicClient
from shared.clients.clinic_async import AsyncClinicClient
from shared.clients.clinic_following import FollowedEvent
from tests.clinic.losing import losing
from tests.clinic.scripted_policy import ScriptedPolicy, answer, look
from tests.clinic.test_cases import CHOICES, IN_VIEW, QUESTION
from tests.clinic.test_client import SCAN
from tests.clinic.test_idempotency import num_cases
from tests.clinic.test_recovery import (
    ClinicProcess,
    process,  # noqa: F401 - a fixture
)


@pytest.mark.parametrize("wait_s", [0, None])
def test_a_lost_answer_makes_no_second_case(
    clinic: httpx.Client, policy: ScriptedPolicy, wait_s: float | None
):
    policy.rehearse([answer("it")])
    with losing(str(clinic.base_url)) as forwarder, ClinicClient(forwarder.url) as client:
        forwarder.num_to_lose = 2
        case = client.ask(SCAN, QUESTION, k=1, wait_s=wait_s)
        assert client.wait(case.case_id).answer == "it"

    assert forwarder.num_lost == 2
    assert num_cases(clinic) == 1
    assert 'keyed_requests_total{outcome="first"} 1.0' in clinic.get("/metrics").text


async def test_a_lost_answer_makes_no_second_case_asynchronously(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([answer("it")])
    with losing(str(clinic.base_url)) as forwarder:
        async with AsyncClinicClient(forwarder.url) as client:
            forwarder.num_to_lose = 1
            case = await client.ask(SCAN, QUESTION, k=1)

    assert (case.answer, forwarder.num_lost) == ("it", 1)
    assert num_cases(clinic) == 1


def test_a_killed_clinic_answers_who_asked_and_tells_who_follows_every_event_once(
    process: ClinicProcess,  # noqa: F811
    policy: ScriptedPolicy,
):
    policy.rehearse([look(IN_VIEW), look(IN_VIEW), answer("A")])
    policy.hold_after = 2  # the first process tells two turns, then waits
    url = str(process.client.base_url)
    blocking: list[FollowedEvent] = []
    asynchronous: list[FollowedEvent] = []
    mid_way = threading.Barrier(3)

    def follow(case_id: str) -> None:
        with ClinicClient(url) as client:
            for told in client.follow(case_id):
                blocking.append(told)
                if len(blocking) == 7:
                    mid_way.wait(timeout=30)

    async def follow_too(case_id: str) -> None:
        async with AsyncClinicClient(url) as client:
            async for told in client.follow(case_id):
                asynchronous.append(told)
                if len(asynchronous) == 7:
                    await asyncio.to_thread(mid_way.wait, 30)

    with ClinicClient(url) as client, ThreadPoolExecutor(3) as threads:
        asking = threads.submit(client.ask, SCAN, QUESTION, choices=CHOICES, k=1)
        assert policy.entered.wait(timeout=30)
        [line] = next(client.pages()).cases
        followers = [
            threads.submit(follow, line.case_id),
            threads.submit(lambda: asyncio.run(follow_too(line.case_id))),
        ]
        mid_way.wait(timeout=30)
        process.end(signal.SIGKILL)
        process.start()
        policy.release.set()
        for follower in followers:
            follower.result(timeout=60)
        case = asking.result(timeout=60)
        kept = list(client.follow(line.case_id))

    assert (case.case_id, case.status, case.answer) == (line.case_id, CaseStatus.ANSWERED, "A")
    assert num_cases(process.client) == 1
    assert [told.number for told in kept] == list(range(1, len(kept) + 1))
    assert [told.event.event for told in kept].count("started") == 2
    assert kept[-1].event == DoneEvent(status=CaseStatus.ANSWERED)
    assert blocking == asynchronous == kept
