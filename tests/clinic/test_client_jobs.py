"""Further questions and many at once through the typed clients: real worker, real queue."""

from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from shared.api.clinic import CaseStatus
from shared.api.jobs import ItemStatus, JobStatus
from shared.clients.clinic import ClinicClient
from shared.clients.clinic_async import AsyncClinicClient
from shared.clients.http import Retries
from shared.errors import ClinicProblem
from tests.clinic.jobs import scan, until
from tests.clinic.losing import losing
from tests.clinic.scripted_policy import ScriptedPolicy, answer, look
from tests.clinic.test_cases import CHOICES, IN_VIEW, QUESTION
from tests.clinic.test_client import SCAN
from tests.clinic.test_jobs import (
    _served,  # noqa: F401 - a fixture that the next needs
    idle,  # noqa: F401 - a fixture
    jobs,  # noqa: F401 - a fixture
)

SCANS = [scan(1), scan(2), scan(3)]


@pytest.fixture
def client(jobs: httpx.Client) -> Iterator[ClinicClient]:  # noqa: F811
    """Of a clinic with a worker."""
    with ClinicClient(str(jobs.base_url)) as client:
        yield client


def test_a_further_question_keeps_its_context(client: ClinicClient, policy: ScriptedPolicy):
    policy.rehearse([look(IN_VIEW), answer("B")])
    first = client.ask(SCAN, QUESTION, choices=CHOICES, k=1)
    policy.rehearse([answer("A")])

    further = client.follow_up(first.case_id, "On which side?", choices=["left", "right"], k=2)

    assert (further.status, further.option_text) == (CaseStatus.ANSWERED, "left")
    assert (further.follows, further.settings.num_trajectories) == (first.case_id, 2)
    assert further.context is not None
    assert [shown.case_id for shown in further.context.shown] == [first.case_id]
    assert client.get(first.case_id).follow_ups == [further.case_id]


def test_a_further_question_is_not_waited_for(client: ClinicClient, policy: ScriptedPolicy):
    policy.rehearse([answer("B")])
    first = client.ask(SCAN, QUESTION, choices=CHOICES, k=1)
    policy.rehearse([answer("A")])
    policy.release.clear()

    further = client.follow_up(first.case_id, "Left?", seed=5, wait_s=0, idempotency_key="side")
    again = client.follow_up(first.case_id, "Left?", seed=5, wait_s=0, idempotency_key="side")
    policy.release.set()

    assert (further.status, further.settings.seed) == (CaseStatus.RUNNING, 5)
    assert again.case_id == further.case_id
    assert client.wait(further.case_id).answer == "A"


def test_one_question_is_asked_of_every_image(
    client: ClinicClient, policy: ScriptedPolicy, tmp_path: Path
):
    policy.rehearse([answer("B")])
    path = tmp_path / "Doe^Jane.png"
    path.write_bytes(SCANS[0])

    started = client.start_job([path, *SCANS[1:]], QUESTION, choices=CHOICES, k=2, seed=4)
    job = client.wait_for_job(started.job_id)

    assert (started.status, started.counts.queued) == (JobStatus.RUNNING, 3)
    assert (job.status, job.counts.done, job.next_url) == (JobStatus.DONE, 3, None)
    assert client.job(job.job_id) == job
    items = list(client.job_items(job.job_id, limit=2))
    assert items == job.items
    assert [item.number for item in items] == [1, 2, 3]
    cases = [client.get(item.case_id or "") for item in items]
    assert {case.option_text for case in cases} == {"cross"}
    assert {(case.settings.num_trajectories, case.settings.seed) for case in cases} == {(2, 4)}


def test_rows_name_a_path_or_a_hash(client: ClinicClient, policy: ScriptedPolicy, tmp_path: Path):
    policy.rehearse([answer("B")])
    path, questions = tmp_path / "a.png", tmp_path / "questions.csv"
    path.write_bytes(SCANS[0])
    digest = sha256(SCANS[1]).hexdigest()
    questions.write_text(f"image,question,k\n{digest},Where?,2\na.png,What?,\n")

    started = client.start_job([path, SCANS[1]], questions=questions, k=1)
    job = client.wait_for_job(started.job_id)

    assert [(item.image_number, item.question) for item in job.items] == [
        (2, "Where?"),
        (1, "What?"),
    ]
    cases = [client.get(item.case_id or "") for item in job.items]
    assert [case.settings.num_trajectories for case in cases] == [2, 1]


def test_a_job_is_cancelled_and_keeps_what_had_ended(client: ClinicClient, policy: ScriptedPolicy):
    policy.rehearse([answer("B")])
    policy.hold_after = 1
    started = client.start_job(SCANS, QUESTION, k=1)
    until(lambda: client.job(started.job_id).counts.done == 1)

    waited = client.wait_for_job(started.job_id, wait_s=0.1)
    cancelled = client.cancel_job(started.job_id)
    policy.release.set()

    assert waited.status is JobStatus.RUNNING
    assert (cancelled.status, cancelled.counts.done) == (JobStatus.CANCELLED, 1)
    assert client.cancel_job(started.job_id) == cancelled == client.wait_for_job(started.job_id)
    statuses = [item.status for item in client.job_items(started.job_id)]
    assert sorted(statuses) == [ItemStatus.CANCELLED, ItemStatus.CANCELLED, ItemStatus.DONE]


async def test_the_asynchronous_client_does_the_same(
    jobs: httpx.Client,  # noqa: F811
    client: ClinicClient,
    policy: ScriptedPolicy,
):
    policy.rehearse([answer("B")])
    async with AsyncClinicClient(str(jobs.base_url)) as same:
        started = await same.start_job(SCANS, QUESTION, choices=CHOICES, k=1)
        job = await same.wait_for_job(started.job_id)
        items = [item async for item in same.job_items(job.job_id, limit=2)]
        further = await same.follow_up(items[0].case_id or "", "Left?", k=1)
        listed = [line async for line in same.jobs(limit=1)]
        with pytest.raises(ClinicProblem, match="only a running job can be cancelled"):
            await same.cancel_job(job.job_id)
        read = await same.job(job.job_id)

    assert (job.status, further.answer) == (JobStatus.DONE, "B")
    assert read == job == client.job(job.job_id)
    assert items == job.items == list(client.job_items(job.job_id))
    assert listed == list(client.jobs())
    assert listed[0].job_id == job.job_id
    assert client.get(further.case_id) == further


def test_a_lost_answer_makes_no_second_job(idle: httpx.Client):  # noqa: F811
    with losing(str(idle.base_url)) as forwarder, ClinicClient(forwarder.url) as client:
        forwarder.num_to_lose = 1
        job = client.start_job(SCANS, QUESTION, k=1)
        second = client.start_job(SCANS[:1], QUESTION, k=1)
        listed = [line.job_id for line in client.jobs(limit=1)]

    assert forwarder.num_lost == 1
    assert listed == [second.job_id, job.job_id]


def test_what_is_refused_says_why(
    idle: httpx.Client,  # noqa: F811
    start_clinic: Callable[..., httpx.Client],
    tmp_path: Path,
):
    with ClinicClient(str(idle.base_url)) as client:
        with pytest.raises(ClinicProblem, match="give either question") as neither:
            client.start_job(SCANS)
        with pytest.raises(ClinicProblem, match="row 2") as bad_row:
            client.start_job(SCANS, questions=b"image,question\nb.png,What?\n")
        with pytest.raises(ClinicProblem) as unknown:
            client.wait_for_job("no such?job")
        with pytest.raises(ClinicProblem) as no_case:
            client.follow_up("nobody", "Left?")
    no_queue = start_clinic(database=tmp_path / "other.sqlite")
    with (
        ClinicClient(str(no_queue.base_url), retries=Retries(max_attempts=1)) as client,
        pytest.raises(ClinicProblem, match="MEDVR_CLINIC_REDIS_URL"),
    ):
        client.start_job(SCANS, QUESTION)

    assert (neither.value.status, bad_row.value.status) == (422, 422)
    assert (unknown.value.status, unknown.value.title) == (404, "No such job")
    assert unknown.value.detail == "no job no such?job"
    assert (no_case.value.status, no_case.value.title) == (404, "No such case")
