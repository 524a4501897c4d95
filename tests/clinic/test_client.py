"""The typed clients against a running clinic, blocking and asynchronous."""

import io
from collections.abc import AsyncIterator, Callable, Iterator
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
from PIL import Image

from shared.api.case_events import AnswerEvent, DoneEvent, StartedEvent, ZoomEvent
from shared.api.clinic import CaseStatus
from shared.api.feedback import FeedbackRequest, ReviewerRole, Verdict
from shared.clients.clinic import ClinicClient
from shared.clients.clinic_async import AsyncClinicClient
from shared.clients.http import Retries
from shared.errors import ClinicError, ClinicProblem
from tests.clinic.pictures import picture, png
from tests.clinic.scripted_policy import ScriptedPolicy, answer, look
from tests.clinic.test_cases import CHOICES, IN_VIEW, QUESTION, two_against_one

SCAN = png(picture())


@pytest.fixture
def client(clinic: httpx.Client) -> Iterator[ClinicClient]:
    with ClinicClient(str(clinic.base_url)) as client:
        yield client


@pytest.fixture
async def async_client(clinic: httpx.Client) -> AsyncIterator[AsyncClinicClient]:
    async with AsyncClinicClient(str(clinic.base_url)) as client:
        yield client


def test_an_answer_comes_as_a_case(client: ClinicClient, policy: ScriptedPolicy):
    two_against_one(policy)

    case = client.ask(SCAN, QUESTION, choices=CHOICES, k=3, seed=1)

    assert (case.status, case.answer, case.option_text) == (CaseStatus.ANSWERED, "B", "cross")
    assert (case.settings.num_trajectories, case.settings.seed) == (3, 1)
    assert client.get(case.case_id) == case


def test_an_image_is_a_path_bytes_or_an_open_file(
    client: ClinicClient, policy: ScriptedPolicy, tmp_path: Path
):
    policy.rehearse([answer("it")])
    path = tmp_path / "Doe^Jane.png"
    path.write_bytes(SCAN)

    cases = [client.ask(one, QUESTION, k=1) for one in (path, str(path), SCAN, io.BytesIO(SCAN))]

    assert len({case.image.sha256 for case in cases}) == 1
    assert {case.answer for case in cases} == {"it"}


def test_a_caller_that_does_not_wait_looks_again(client: ClinicClient, policy: ScriptedPolicy):
    policy.rehearse([answer("it")])
    policy.release.clear()

    asked = client.ask(SCAN, QUESTION, k=1, wait_s=0)
    later = client.wait(asked.case_id, wait_s=0.3)
    policy.release.set()
    ended = client.wait(asked.case_id)

    assert (asked.status, later.status) == (CaseStatus.RUNNING, CaseStatus.RUNNING)
    assert (ended.status, ended.answer) == (CaseStatus.ANSWERED, "it")


def test_the_course_of_a_case_is_typed(client: ClinicClient, policy: ScriptedPolicy):
    policy.rehearse([look(IN_VIEW), answer("A")])
    case = client.ask(SCAN, QUESTION, choices=CHOICES, k=1)

    told = list(client.follow(case.case_id))
    rest = list(client.follow(case.case_id, after=told[5].number))

    assert [one.number for one in told] == list(range(1, 9))
    assert told[0].event == StartedEvent(num_trajectories=1)
    [zoom] = [one.event for one in told if isinstance(one.event, ZoomEvent)]
    assert zoom.crop == case.evidence[0].crop
    assert [type(one.event) for one in told[-2:]] == [AnswerEvent, DoneEvent]
    assert rest == told[6:]
    assert list(client.follow(case.case_id, after=8)) == []


def test_the_evidence_can_be_seen(client: ClinicClient, policy: ScriptedPolicy):
    policy.rehearse([look(IN_VIEW), answer("A")])
    case = client.ask(SCAN, QUESTION, choices=CHOICES, k=2)
    [zoom] = case.evidence
    assert case.consensus is not None

    image = client.image(case.case_id)
    crop = client.crop(case.case_id, zoom.crop)
    heatmap = client.heatmap(case.case_id)

    names = [sha256(content).hexdigest() for content in (image, crop, heatmap)]
    assert names == [case.image.sha256, zoom.crop, case.consensus.heatmap_sha256]
    assert Image.open(io.BytesIO(image)).size == (336, 336)


def test_cases_are_listed_page_by_page(client: ClinicClient, policy: ScriptedPolicy):
    policy.rehearse([answer("it")])
    asked = [client.ask(SCAN, QUESTION, k=1).case_id for _ in range(3)]

    pages = [[line.case_id for line in page.cases] for page in client.pages(limit=2)]

    assert pages == [[asked[2], asked[1]], [asked[0]]]


def test_a_running_case_is_cancelled(client: ClinicClient, policy: ScriptedPolicy):
    policy.rehearse([answer("it")])
    policy.release.clear()
    asked = client.ask(SCAN, QUESTION, k=1, wait_s=0)

    cancelled = client.cancel(asked.case_id)
    policy.release.set()

    assert cancelled.status is CaseStatus.CANCELLED
    assert client.cancel(asked.case_id) == cancelled


def test_feedback_is_given_in_sight_of_the_newest(client: ClinicClient, policy: ScriptedPolicy):
    policy.rehearse([answer("B")])
    case_id = client.ask(SCAN, QUESTION, choices=CHOICES, k=1).case_id
    said = FeedbackRequest(verdict=Verdict.AGREE, role=ReviewerRole.CLINICIAN, note="clear")

    given = client.give_feedback(case_id, said)
    with pytest.raises(ClinicProblem, match="newest feedback is version 1") as stale:
        client.give_feedback(case_id, said)

    assert (given.version, given.note) == (1, "clear")
    assert client.feedback(case_id).versions == [given]
    assert (stale.value.status, stale.value.title) == (409, "The feedback has changed")
    assert not stale.value.is_transient


def test_what_is_refused_says_why(client: ClinicClient):
    with pytest.raises(ClinicProblem) as unknown:
        client.get("no such?case")
    with pytest.raises(ClinicProblem) as no_image:
        client.ask(b"no image", QUESTION)
    with pytest.raises(ClinicProblem) as no_follower:
        list(client.follow("nobody"))

    problem = unknown.value
    assert (problem.status, problem.title) == (404, "No such case")
    assert (problem.detail, problem.is_transient) == ("no case no such?case", False)
    assert (no_image.value.status, no_image.value.is_transient) == (415, False)
    assert no_follower.value.status == 404
    assert client.describe().max_trajectories == 16


def test_what_cannot_be_reached_may_be_asked_again(free_port: Callable[[], int]):
    url = f"http://127.0.0.1:{free_port()}"
    with ClinicClient(url, retries=Retries(max_attempts=2)) as client:
        with pytest.raises(ClinicError, match="no answer") as away:
            client.describe()
        with pytest.raises(ClinicError, match="no answer"):
            list(client.follow("any", patience_s=0))

    assert (away.value.is_transient, away.value.status) == (True, None)


async def test_the_asynchronous_client_does_the_same(
    async_client: AsyncClinicClient, client: ClinicClient, policy: ScriptedPolicy
):
    two_against_one(policy)

    case = await async_client.ask(io.BytesIO(SCAN), QUESTION, choices=CHOICES, k=3, seed=1)
    told = [one async for one in async_client.follow(case.case_id)]
    crops = [await async_client.crop(case.case_id, zoom.crop) for zoom in case.evidence]
    said = FeedbackRequest(verdict=Verdict.DISAGREE, role=ReviewerRole.OTHER)
    given = await async_client.give_feedback(case.case_id, said)

    assert case == client.get(case.case_id) == await async_client.get(case.case_id)
    assert told == list(client.follow(case.case_id))
    assert crops == [client.crop(case.case_id, zoom.crop) for zoom in case.evidence]
    assert await async_client.image(case.case_id) == client.image(case.case_id)
    assert await async_client.heatmap(case.case_id) == client.heatmap(case.case_id)
    assert await async_client.feedback(case.case_id) == client.feedback(case.case_id)
    assert (await async_client.feedback(case.case_id)).versions == [given]
    assert [page async for page in async_client.pages(1)] == list(client.pages(1))
    assert await async_client.describe() == client.describe()
    with pytest.raises(ClinicProblem, match="case has ended"):
        await async_client.cancel(case.case_id)


async def test_the_asynchronous_client_waits_and_cancels(
    async_client: AsyncClinicClient, policy: ScriptedPolicy
):
    policy.rehearse([answer("it")])
    policy.release.clear()
    asked = await async_client.ask(SCAN, QUESTION, k=1, wait_s=0)
    later = await async_client.wait(asked.case_id, wait_s=0.1)
    cancelled = await async_client.cancel(asked.case_id)
    policy.release.set()

    assert later.status is CaseStatus.RUNNING
    assert cancelled.status is CaseStatus.CANCELLED
    assert await async_client.wait(asked.case_id) == cancelled
