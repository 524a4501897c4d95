"""A job whose clinic, worker and queue are killed or emptied: every item ends in one case."""

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from services.clinic.address import DatabaseAddress
from services.clinic.job_desk import MAX_ATTEMPTS
from services.clinic.job_queue import QUEUE, TASK_NAME
from services.clinic.job_store import ItemName, JobStore
from services.clinic.store import CaseStore
from tests.clinic.conftest import Surroundings
from tests.clinic.jobs import WorkerProcess, ended, study, until
from tests.clinic.scripted_policy import ScriptedPolicy, answer
from tests.clinic.test_recovery import ClinicProcess


class Ward:
    """A clinic and its worker, both processes, over one queue."""

    def __init__(self, clinic: ClinicProcess, worker: WorkerProcess, queue: redis.Redis) -> None:
        self.clinic = clinic
        self.worker = worker
        self.queue = queue

    def num_cases(self) -> int:
        return len(self.clinic.client.get("/v1/cases?limit=100").json()["cases"])


@pytest.fixture
def ward(
    surroundings: Surroundings,
    valkey_url: str,
    valkey: redis.Redis,
    tmp_path: Path,
    free_port: Callable[[], int],
) -> Iterator[Ward]:
    port = free_port()
    flags = ("--redis-url", valkey_url, "--job-sweep-s", "0.5")
    clinic = ClinicProcess(surroundings, tmp_path / "clinic.sqlite", port, *flags)
    url = f"http://127.0.0.1:{port}"
    worker = WorkerProcess(valkey_url, url, free_port(), tmp_path / "worker.log")
    clinic.start()
    yield Ward(clinic, worker, valkey)
    worker.close()
    clinic.close()


def held_study(ward: Ward, policy: ScriptedPolicy, num_images: int) -> dict[str, object]:
    """A job whose first cases have been asked of the policy, which keeps them waiting."""
    policy.rehearse([answer("A")])
    policy.release.clear()
    job = study(ward.clinic.client, num_images)
    ward.worker.start()
    until(lambda: policy.num_entered >= 2)
    return job


def test_a_killed_worker_a_killed_clinic_and_an_emptied_queue_lose_nothing(
    ward: Ward, policy: ScriptedPolicy
):
    job = held_study(ward, policy, 5)
    ward.worker.end(signal.SIGKILL)
    ward.clinic.end(signal.SIGKILL)
    ward.queue.flushall()

    policy.release.set()
    ward.clinic.start()
    ward.worker.start()
    done = ended(ward.clinic.client, job)

    assert (done["status"], done["counts"]["done"]) == ("done", 5)
    assert len({item["case_id"] for item in done["items"]}) == ward.num_cases() == 5


def test_the_items_of_a_killed_worker_are_delivered_again(ward: Ward, policy: ScriptedPolicy):
    job = held_study(ward, policy, 4)
    ward.worker.end(signal.SIGKILL)
    assert ward.queue.hlen(QUEUE.unacked_key) >= 2

    policy.release.set()
    ward.worker.start()
    done = ended(ward.clinic.client, job)

    assert (done["status"], ward.num_cases()) == ("done", 4)
    assert all(item["attempts"] == 1 for item in done["items"])
    until(lambda: ward.queue.hlen(QUEUE.unacked_key) == 0)


def test_a_worker_waits_for_a_clinic_that_was_killed(ward: Ward, policy: ScriptedPolicy):
    job = held_study(ward, policy, 3)
    ward.clinic.end(signal.SIGKILL)
    policy.release.set()
    until(lambda: "the clinic does not answer" in ward.worker.log.read_text())

    ward.clinic.start()
    done = ended(ward.clinic.client, job)

    assert (done["status"], ward.num_cases()) == ("done", 3)
    assert ward.worker.end(signal.SIGTERM) == 0


def test_an_emptied_queue_is_filled_again(ward: Ward, policy: ScriptedPolicy):
    policy.rehearse([answer("A")])
    job = study(ward.clinic.client, 3)
    ward.queue.flushall()

    until(lambda: ward.queue.llen(QUEUE.list_key) == 3)
    ward.worker.start()

    assert ended(ward.clinic.client, job)["status"] == "done"
    metrics = ward.clinic.client.get("/metrics").text
    assert "medvr_clinic_items_sent_again_total 3.0" in metrics


def test_a_worker_that_is_told_to_stop_gives_its_items_back(ward: Ward, policy: ScriptedPolicy):
    job = held_study(ward, policy, 3)

    assert ward.worker.end(signal.SIGTERM) == 0

    assert ward.queue.hlen(QUEUE.unacked_key) == 0
    assert ward.queue.llen(QUEUE.list_key) == 3
    policy.release.set()
    ward.worker.start()
    assert ended(ward.clinic.client, job)["status"] == "done"


def test_an_item_is_one_case_however_often_it_is_asked_for(ward: Ward, policy: ScriptedPolicy):
    policy.rehearse([answer("A")])
    job = study(ward.clinic.client, 1)
    path = f"{job['url']}/items/1/work"

    answers = [ward.clinic.client.post(path, headers={"prefer": "wait=20"}) for _ in range(3)]

    assert [each.status_code for each in answers] == [200] * 3
    assert len({each.json()["case_id"] for each in answers}) == ward.num_cases() == 1
    assert ward.clinic.client.post(f"{job['url']}/items/2/work").status_code == 404
    ward.worker.start()
    until(lambda: ward.queue.hlen(QUEUE.unacked_key) + ward.queue.llen(QUEUE.list_key) == 0)


def test_what_is_no_item_is_dropped_and_hurts_nobody(
    ward: Ward, policy: ScriptedPolicy, valkey_url: str
):
    policy.rehearse([answer("A")])
    with QUEUE.celery(valkey_url) as app:
        for payload in ("zebrafinch", 7, '{"job_id": "gone", "number": 1}'):
            app.send_task(TASK_NAME, args=[payload], argsrepr="-")
    job = study(ward.clinic.client, 1)
    ward.worker.start()

    assert ended(ward.clinic.client, job)["status"] == "done"
    until(lambda: 'deliveries_total{outcome="unknown"} 1.0' in ward.worker.metrics())
    assert 'deliveries_total{outcome="rejected"} 2.0' in ward.worker.metrics()
    assert "zebrafinch" not in ward.worker.log.read_text()


def test_an_item_on_which_work_always_breaks_off_fails(ward: Ward, tmp_path: Path):
    job = study(ward.clinic.client, 1)
    store = CaseStore(DatabaseAddress.of(tmp_path / "clinic.sqlite"))
    for _ in range(MAX_ATTEMPTS):  # as if the clinic had been killed each time
        JobStore(store.transactions).take(ItemName(str(job["job_id"]), 1))
    store.close()

    ward.worker.start()
    done = ended(ward.clinic.client, job)

    assert done["status"] == "done_with_failures"
    [item] = done["items"]
    assert item["failure"] == "clinic: work on it began 5 times, and no case came of it"
    assert ward.num_cases() == 0
    assert Counter(item["status"] for item in done["items"]) == {"failed": 1}
