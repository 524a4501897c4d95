"""Many questions at once: a real worker on a real queue, real zoom and cca, a scripted policy."""

import base64
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import redis

from services.clinic.address import DatabaseAddress
from services.clinic.app import create_app
from services.clinic.job_desk import MAX_ATTEMPTS
from services.clinic.job_documents import ItemName
from services.clinic.job_queue import QUEUE, TASK_NAME
from services.clinic.job_store import JobStore
from services.clinic.store import CaseStore
from tests.clinic.conftest import Surroundings, served
from tests.clinic.jobs import WorkerProcess, ended, everything_in, scan, send, study, until
from tests.clinic.scripted_policy import ScriptedPolicy, answer, look

NO_QUEUE = "redis://127.0.0.1:9/0"
"""The discard port."""
IMAGES = [("a.png", scan(1)), ("b.png", scan(2))]


@pytest.fixture(scope="module")
def _served(
    _surroundings: Surroundings,
    _valkey_server: str,
    tmp_path_factory: pytest.TempPathFactory,
    free_port: Callable[[], int],
) -> Iterator[tuple[httpx.Client, WorkerProcess]]:
    folder = tmp_path_factory.mktemp("jobs")
    redis_url = _valkey_server.replace("/0", "/1")  # whose queue the other tests do not see
    settings = _surroundings.settings(
        folder / "clinic.sqlite", redis_url=redis_url, job_sweep_s=0.5
    )
    with (
        served(create_app(settings)) as url,
        httpx.Client(base_url=url, timeout=60, trust_env=False) as client,
    ):
        worker = WorkerProcess(redis_url, url, free_port(), folder / "worker.log")
        worker.start()
        yield client, worker
        worker.close()


@pytest.fixture
def jobs(_served: tuple[httpx.Client, WorkerProcess], policy: ScriptedPolicy) -> httpx.Client:
    """A clinic with a worker."""
    del policy  # rehearsed anew
    return _served[0]


@pytest.fixture
def worker(_served: tuple[httpx.Client, WorkerProcess]) -> WorkerProcess:
    """Its worker."""
    return _served[1]


@pytest.fixture
def idle(start_clinic: Callable[..., httpx.Client], valkey_url: str) -> httpx.Client:
    """A clinic without a worker."""
    return start_clinic(redis_url=valkey_url, job_sweep_s=0.5)


def read(clinic: httpx.Client, url: str) -> dict[str, Any]:
    return clinic.get(url).json()


def test_every_image_of_a_study_becomes_a_case(
    jobs: httpx.Client, worker: WorkerProcess, policy: ScriptedPolicy
):
    policy.rehearse([answer("A")], [answer("B")])
    before = len(read(jobs, "/v1/cases")["cases"])

    accepted = study(jobs, 3)
    job = ended(jobs, accepted)

    assert (accepted["status"], accepted["counts"]["queued"]) == ("running", 3)
    assert (job["status"], job["counts"]["done"], job["num_items"]) == ("done", 3, 3)
    assert job["finished_at"] > job["created_at"]
    assert [item["number"] for item in job["items"]] == [1, 2, 3]
    assert len({item["case_id"] for item in job["items"]}) == 3
    for item in job["items"]:
        case = read(jobs, item["case_url"])
        assert (case["status"], case["choices"]) == ("answered", ["ring", "disc"])
        assert item["case_status"] == "answered"
        assert case["image"]["sha256"] == item["image_sha256"]
        assert case["created_at"] > job["created_at"]
    assert len(read(jobs, "/v1/cases")["cases"]) == before + 3
    logged = worker.log.read_text()
    assert "What is shown" not in logged
    assert "scan1" not in logged


def test_a_file_of_questions_says_which_is_asked_of_which_image(
    jobs: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([answer("A")])
    digest = sha256(IMAGES[1][1]).hexdigest()
    questions = (
        "\ufeffImage,Question,choices,k,seed\r\n"
        'a.png,"Is it round, or not?",round | not,,5\r\n'
        ",,,,\r\n"
        f"{digest.upper()},Where is it?,,2,\r\n"
        "a.png,What is it?,ring|disc|dot,3,0\r\n"
    )

    accepted = send(jobs, IMAGES, questions, k="1", seed="7").json()
    items = ended(jobs, accepted)["items"]

    cases = [read(jobs, item["case_url"]) for item in items]
    assert [(item["image_number"], item["question"]) for item in items] == [
        (1, "Is it round, or not?"),
        (2, "Where is it?"),
        (1, "What is it?"),
    ]
    assert [case["choices"] for case in cases] == [["round", "not"], [], ["ring", "disc", "dot"]]
    settings = [case["settings"] for case in cases]
    assert [(each["num_trajectories"], each["seed"]) for each in settings] == [
        (1, 5),
        (2, 7),
        (3, 0),
    ]
    assert cases[0]["image"]["sha256"] == cases[2]["image"]["sha256"]
    assert cases[0]["image"]["sha256"] != cases[1]["image"]["sha256"]


def test_an_answer_may_be_verified_as_of_a_case(jobs: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([look([40, 40, 60, 60]), answer("A")])
    questions = "image,question,choices,verify\na.png,?,ring|disc,yes\na.png,?,ring|disc,\n"

    items = ended(jobs, send(jobs, IMAGES[:1], questions).json())["items"]

    verified, plain = (read(jobs, f"{item['case_url']}?show=withheld") for item in items)
    assert verified["verification"]["evidence_blanked"]["changed"] is False
    assert plain["verification"] is None


def test_choices_may_be_columns(idle: httpx.Client):
    questions = "question,choices,choices,image\nWhich?,ring,disc,a.png\n"

    job = send(idle, IMAGES[:1], questions).json()

    assert [item["question"] for item in job["items"]] == ["Which?"]


def test_an_item_whose_case_failed_says_why(jobs: httpx.Client, policy: ScriptedPolicy):
    policy.fail_with = 400

    job = ended(jobs, study(jobs, 2))

    assert (job["status"], job["counts"]["failed"]) == ("done_with_failures", 2)
    for item in job["items"]:
        assert (item["status"], item["case_status"], item["attempts"]) == ("failed", "failed", 1)
        assert item["failure"].startswith("policy: 400 Policy refuses")


def test_a_cancelled_job_stops_and_keeps_what_had_ended(jobs: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([answer("A")])
    policy.hold_after = 1
    before = len(read(jobs, "/v1/cases")["cases"])
    job = study(jobs, 5)
    until(lambda: read(jobs, job["url"])["counts"]["done"] == 1)
    until(lambda: read(jobs, job["url"])["counts"]["running"] == 2)

    cancelled = jobs.post(f"{job['url']}/cancel").json()
    policy.release.set()

    assert (cancelled["status"], cancelled["counts"]["done"]) == ("cancelled", 1)
    assert cancelled["counts"]["cancelled"] == 4
    statuses = [item["case_status"] for item in cancelled["items"]]
    assert sorted(map(str, statuses)) == ["None", "None", "answered", "cancelled", "cancelled"]
    again = jobs.post(f"{job['url']}/cancel")
    assert (again.status_code, again.json()) == (200, cancelled)
    assert len(read(jobs, "/v1/cases")["cases"]) == before + 3


def test_a_job_that_has_ended_is_not_cancelled(jobs: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([answer("A")])
    job = ended(jobs, study(jobs, 1))

    problem = jobs.post(f"{job['url']}/cancel")

    assert problem.status_code == 409
    assert problem.json()["detail"].endswith("is done; only a running job can be cancelled")
    assert read(jobs, job["url"]) == job
    assert jobs.post("/v1/jobs/nobody/cancel").status_code == 404


def test_a_repeated_job_is_one_job(idle: httpx.Client):
    headers = {"idempotency-key": '"batch"'}

    first = study(idle, 2, headers)
    again = study(idle, 2, headers)

    assert again == first
    assert [job["job_id"] for job in read(idle, "/v1/jobs")["jobs"]] == [first["job_id"]]
    other = send(idle, IMAGES, headers=headers, question="What else?")
    assert other.status_code == 422
    cancel = {"idempotency-key": '"stop"'}
    stopped = idle.post(f"{first['url']}/cancel", headers=cancel).json()
    assert idle.post(f"{first['url']}/cancel", headers=cancel).json() == stopped


def test_a_repeated_file_of_questions_is_one_job(idle: httpx.Client):
    headers = {"idempotency-key": '"rows"'}
    rows = "image,question\na.png,What?\nb.png,Where?\n"

    first = send(idle, IMAGES, rows, headers)
    again = send(idle, IMAGES, rows, headers)

    assert (first.status_code, first.json()["num_items"]) == (202, 2)
    assert again.json() == first.json()
    assert send(idle, IMAGES, rows.replace("Where", "Which"), headers).status_code == 422


def test_jobs_and_items_are_paged(idle: httpx.Client):
    ids = [study(idle, number)["job_id"] for number in (1, 2, 3)]

    first = read(idle, "/v1/jobs?limit=2")
    second = read(idle, first["next_url"])
    assert [job["job_id"] for page in (first, second) for job in page["jobs"]] == ids[::-1]
    assert second["next_url"] is None
    page = read(idle, f"/v1/jobs/{ids[2]}?limit=2")
    rest = read(idle, page["next_url"])
    assert [item["number"] for part in (page, rest) for item in part["items"]] == [1, 2, 3]
    assert rest["next_url"] is None
    assert idle.get("/v1/jobs/nobody").status_code == 404
    assert idle.get("/v1/jobs?before=nobody").status_code == 404


def test_a_message_names_an_item_and_nothing_else(idle: httpx.Client, valkey: redis.Redis):
    job = send(idle, [("doe_jane.png", scan(1))], question="Is it zebrafinch?").json()

    [raw] = valkey.lrange(QUEUE.list_key, 0, -1)
    message = msgspec.json.decode(raw)
    arguments = msgspec.json.decode(base64.b64decode(message["body"]))[0]
    payload = msgspec.json.decode(arguments[0])

    assert payload == {"job_id": job["job_id"], "number": 1}
    assert message["headers"]["argsrepr"] == f"{job['job_id']}:1"
    everything = everything_in(valkey)
    assert everything.count(job["job_id"].encode()) > 1, "in the message, and in its body"
    assert b"zebrafinch" not in everything
    assert b"doe_jane" not in everything


def test_a_job_waits_for_a_queue_that_is_away(
    start_clinic: Callable[..., httpx.Client],
    policy: ScriptedPolicy,
    valkey_url: str,
    free_port: Callable[[], int],
    tmp_path: Path,
):
    policy.rehearse([answer("A")])
    away = start_clinic(redis_url=NO_QUEUE)
    job = study(away, 1)
    assert read(away, job["url"])["counts"]["queued"] == 1
    assert away.get("/ready").status_code == 200, "cases need no queue"

    back = start_clinic(redis_url=valkey_url, job_sweep_s=0.5)
    worker = WorkerProcess(valkey_url, str(back.base_url), free_port(), tmp_path / "worker.log")
    worker.start()
    try:
        assert ended(back, job)["status"] == "done"
    finally:
        worker.close()


def test_a_clinic_without_a_queue_says_how_to_get_one(clinic: httpx.Client):
    problem = send(clinic, IMAGES, question="What?")

    assert problem.status_code == 503
    assert "MEDVR_CLINIC_REDIS_URL" in problem.json()["detail"]
    assert read(clinic, "/v1/jobs") == {"jobs": [], "next_url": None}


def test_an_item_is_one_case_however_often_it_is_asked_for(
    idle: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([answer("A")])
    job = study(idle, 1)
    path = f"{job['url']}/items/1/work"

    answers = [idle.post(path, headers={"prefer": "wait=20"}) for _ in range(3)]

    assert [each.status_code for each in answers] == [200] * 3
    [case] = read(idle, "/v1/cases")["cases"]
    assert {each.json()["case_id"] for each in answers} == {case["case_id"]}
    assert read(idle, job["url"])["status"] == "done"
    assert idle.post(f"{job['url']}/items/2/work").status_code == 404


def test_what_is_no_item_is_dropped_and_hurts_nobody(
    jobs: httpx.Client, worker: WorkerProcess, policy: ScriptedPolicy
):
    policy.rehearse([answer("A")])
    with QUEUE.celery(worker.redis_url) as app:
        for payload in ("zebrafinch", 7, '{"job_id": "gone", "number": 1}'):
            app.send_task(TASK_NAME, args=[payload], argsrepr="-")

    assert ended(jobs, study(jobs, 1))["status"] == "done"

    until(lambda: 'deliveries_total{outcome="unknown"} 1.0' in worker.metrics())
    assert 'deliveries_total{outcome="rejected"} 2.0' in worker.metrics()
    assert "zebrafinch" not in worker.log.read_text()


def test_an_emptied_queue_is_filled_again(idle: httpx.Client, valkey: redis.Redis):
    study(idle, 3)
    valkey.flushall()

    until(lambda: valkey.llen(QUEUE.list_key) == 3)

    assert "medvr_clinic_items_sent_again_total 3.0" in idle.get("/metrics").text


def test_an_item_on_which_work_always_breaks_off_fails(idle: httpx.Client, tmp_path: Path):
    job = study(idle, 1)
    store = CaseStore(DatabaseAddress.of(tmp_path / "clinic.sqlite"))
    for _ in range(MAX_ATTEMPTS):  # as if the clinic had been killed each time
        JobStore(store.transactions).take(ItemName(job["job_id"], 1))
    store.close()

    item = idle.post(f"{job['url']}/items/1/work").json()

    assert item["failure"] == "clinic: work on it began 5 times, and no case came of it"
    assert item["case_id"] is None
    assert ended(idle, job)["status"] == "done_with_failures"
    assert read(idle, "/v1/cases")["cases"] == []


def test_a_case_that_was_written_and_never_begun_is_begun_by_the_sweep(
    idle: httpx.Client, policy: ScriptedPolicy, tmp_path: Path
):
    policy.rehearse([answer("A")])
    job = study(idle, 1)
    store = CaseStore(DatabaseAddress.of(tmp_path / "clinic.sqlite"))
    name, jobs = ItemName(job["job_id"], 1), JobStore(store.transactions)
    jobs.begin(name, jobs.item(name).document.case)  # as by a request that was cut off after it
    store.close()

    assert ended(idle, job)["status"] == "done"
