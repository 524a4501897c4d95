"""Many questions at once: a real worker on a real queue, real zoom and cca, a scripted policy."""

import base64
import signal
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import redis

from services.clinic.job_queue import QUEUE
from tests.clinic.jobs import WorkerProcess, ended, scan, send, study, until
from tests.clinic.scripted_policy import ScriptedPolicy, answer

NO_QUEUE = "redis://127.0.0.1:9/0"
"""The discard port."""
IMAGES = [("a.png", scan(1)), ("b.png", scan(2))]


@pytest.fixture
def jobs(start_clinic: Callable[..., httpx.Client], valkey_url: str) -> httpx.Client:
    """A clinic that takes jobs."""
    return start_clinic(redis_url=valkey_url, job_sweep_s=0.5)


@pytest.fixture
def worker(
    jobs: httpx.Client, valkey_url: str, free_port: Callable[[], int], tmp_path: Path
) -> Iterator[WorkerProcess]:
    """Its worker."""
    process = WorkerProcess(valkey_url, str(jobs.base_url), free_port(), tmp_path / "worker.log")
    process.start()
    yield process
    process.close()


def read(clinic: httpx.Client, url: str) -> dict[str, Any]:
    return clinic.get(url).json()


def test_every_image_of_a_study_becomes_a_case(
    jobs: httpx.Client, worker: WorkerProcess, policy: ScriptedPolicy
):
    policy.rehearse([answer("A")], [answer("B")])

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
    assert len(read(jobs, "/v1/cases")["cases"]) == 3
    assert worker.end(signal.SIGTERM) == 0
    logged = worker.log.read_text()
    assert "What is shown" not in logged
    assert "scan1" not in logged


def test_a_file_of_questions_says_which_is_asked_of_which_image(
    jobs: httpx.Client, worker: WorkerProcess, policy: ScriptedPolicy
):
    del worker
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


def test_choices_may_be_columns(jobs: httpx.Client):
    questions = "question,choices,choices,image\nWhich?,ring,disc,a.png\n"

    job = send(jobs, IMAGES[:1], questions).json()

    assert [item["question"] for item in job["items"]] == ["Which?"]


def test_an_item_whose_case_failed_says_why(
    jobs: httpx.Client, worker: WorkerProcess, policy: ScriptedPolicy
):
    del worker
    policy.fail_with = 400

    job = ended(jobs, study(jobs, 2))

    assert (job["status"], job["counts"]["failed"]) == ("done_with_failures", 2)
    for item in job["items"]:
        assert (item["status"], item["case_status"], item["attempts"]) == ("failed", "failed", 1)
        assert item["failure"].startswith("policy: 400 Policy refuses")


def test_a_cancelled_job_stops_and_keeps_what_had_ended(
    jobs: httpx.Client, worker: WorkerProcess, policy: ScriptedPolicy
):
    del worker
    policy.rehearse([answer("A")])
    policy.hold_after = 1
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
    until(lambda: len(read(jobs, "/v1/cases")["cases"]) == 3)


def test_a_job_that_has_ended_is_not_cancelled(
    jobs: httpx.Client, worker: WorkerProcess, policy: ScriptedPolicy
):
    del worker
    policy.rehearse([answer("A")])
    job = ended(jobs, study(jobs, 1))

    problem = jobs.post(f"{job['url']}/cancel")

    assert problem.status_code == 409
    assert problem.json()["detail"].endswith("is done; only a running job can be cancelled")
    assert read(jobs, job["url"]) == job
    assert jobs.post("/v1/jobs/nobody/cancel").status_code == 404


def test_a_repeated_job_is_one_job(jobs: httpx.Client):
    headers = {"idempotency-key": '"batch"'}

    first = study(jobs, 2, headers)
    again = study(jobs, 2, headers)

    assert again == first
    assert [job["job_id"] for job in read(jobs, "/v1/jobs")["jobs"]] == [first["job_id"]]
    other = send(jobs, IMAGES, headers=headers, question="What else?")
    assert other.status_code == 422
    cancel = {"idempotency-key": '"stop"'}
    stopped = jobs.post(f"{first['url']}/cancel", headers=cancel).json()
    assert jobs.post(f"{first['url']}/cancel", headers=cancel).json() == stopped


def test_jobs_and_items_are_paged(jobs: httpx.Client):
    ids = [study(jobs, number)["job_id"] for number in (1, 2, 3)]

    first = read(jobs, "/v1/jobs?limit=2")
    second = read(jobs, first["next_url"])
    assert [job["job_id"] for page in (first, second) for job in page["jobs"]] == ids[::-1]
    assert second["next_url"] is None
    page = read(jobs, f"/v1/jobs/{ids[2]}?limit=2")
    rest = read(jobs, page["next_url"])
    assert [item["number"] for part in (page, rest) for item in part["items"]] == [1, 2, 3]
    assert rest["next_url"] is None
    assert jobs.get("/v1/jobs/nobody").status_code == 404
    assert jobs.get("/v1/jobs?before=nobody").status_code == 404


def test_a_message_names_an_item_and_nothing_else(jobs: httpx.Client, valkey: redis.Redis):
    job = send(jobs, [("doe_jane.png", scan(1))], question="Is it zebrafinch?").json()

    [raw] = valkey.lrange(QUEUE.list_key, 0, -1)
    message = msgspec.json.decode(raw)
    arguments = msgspec.json.decode(base64.b64decode(message["body"]))[0]
    payload = msgspec.json.decode(arguments[0])

    assert payload == {"job_id": job["job_id"], "number": 1}
    assert message["headers"]["argsrepr"] == f"{job['job_id']}:1"
    everything = b"".join(valkey.dump(key) for key in valkey.scan_iter())
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
