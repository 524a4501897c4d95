"""A job whose clinic, worker and queue are killed or emptied: every item ends in one case."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from services.clinic.job_queue import QUEUE
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


def test_an_item_outlives_its_worker_and_its_clinic_in_turn(ward: Ward, policy: ScriptedPolicy):
    job = held_study(ward, policy, 4)
    ward.worker.end(signal.SIGKILL)
    assert ward.queue.hlen(QUEUE.unacked_key) >= 2, "what it had in hand is not lost"
    ward.worker.start()
    until(lambda: "medvr_clinic_worker_running_items 2.0" in ward.worker.metrics())
    ward.clinic.end(signal.SIGKILL)
    until(lambda: "the clinic does not answer" in ward.worker.log.read_text())
    assert ward.worker.end(signal.SIGTERM) == 0
    assert ward.queue.llen(QUEUE.list_key) >= 2, "what it had in hand it gives back"

    policy.release.set()
    ward.clinic.start()
    ward.worker.start()
    done = ended(ward.clinic.client, job)

    assert (done["status"], done["counts"]["done"]) == ("done", 4)
    assert len({item["case_id"] for item in done["items"]}) == ward.num_cases() == 4
    # One that was begun as the clinic was killed, and had no case yet, is begun once more.
    assert all(item["attempts"] in (1, 2) for item in done["items"])
    until(lambda: ward.queue.hlen(QUEUE.unacked_key) + ward.queue.llen(QUEUE.list_key) == 0)
