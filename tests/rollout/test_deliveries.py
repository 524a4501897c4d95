"""What becomes of a delivered task, without Celery in front: the worker's own loop and clients."""

from collections.abc import Iterator

import pytest
import redis
from celery.exceptions import Reject
from prometheus_client import CollectorRegistry

from services.rollout.metrics import RolloutMetrics
from services.rollout.settings import RolloutSettings
from services.rollout.task import encode_task
from services.rollout.worker import Deliveries, RolloutLoop
from shared.stream import Fate, RunStream
from shared.trajectory import decode_group
from tests.rollout.company import RUN, Company


class Worker:
    """A worker's inside with its metrics."""

    def __init__(
        self,
        company: Company,
        stream: RunStream | None = None,
        loop_type: type[RolloutLoop] = RolloutLoop,
        **flags: object,
    ) -> None:
        self.registry = CollectorRegistry()
        values = {"run": RUN, "group_size": 2, "max_turns": 3, "max_turn_tokens": 200}
        settings = RolloutSettings.model_validate(
            {**company.urls, **values, "first_backoff_s": 0.05, **flags}
        )
        metrics = RolloutMetrics(self.registry)
        self.loop = loop_type(settings, metrics)
        self.deliveries = Deliveries(settings, stream or company.stream, self.loop, metrics)

    def outcomes(self) -> dict[str, float]:
        """Groups by outcome."""
        return {
            sample.labels["outcome"]: sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == "medvr_rollout_groups_total"
        }

    def value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
def worker(company: Company) -> Iterator[Worker]:
    made = Worker(company)
    with made.loop:
        yield made


def feed(company: Company, number: int = 0) -> tuple[str, str]:
    """Group id and payload of a problem that is marked as fed."""
    task = company.task(number)
    company.stream.mark_fed(task.group_id, task.position)
    return task.group_id, encode_task(task)


def test_a_transient_failure_is_tried_again(company: Company, worker: Worker) -> None:
    company.script.failures.extend([503] * 8)
    group_id, payload = feed(company)
    worker.deliveries.handle(payload)
    (entry,) = company.stream.read_new(2, 10)
    assert decode_group(entry.payload).group_id == group_id
    assert worker.value("medvr_rollout_retries_total", service="policy") >= 1
    assert worker.outcomes() == {"appended": 1}


def test_a_group_tried_again_is_the_group_it_would_have_been(company: Company) -> None:
    groups = []
    for failures in ([], [503] * 8):
        company.stream.client.flushall()
        company.stream.open({}, 0)
        company.script.failures.extend(failures)
        worker = Worker(company, group_size=6)
        with worker.loop:
            worker.deliveries.handle(feed(company)[1])
        (entry,) = company.stream.read_new(2, 10)
        groups.append(decode_group(entry.payload).trajectories)
    assert groups[0] == groups[1]


def test_a_group_out_of_retries_is_buried_with_its_reason(company: Company) -> None:
    company.script.failures.extend([503] * 1000)
    worker = Worker(company, max_attempts=2)
    group_id, payload = feed(company)
    with worker.loop:
        worker.deliveries.handle(payload)
    assert company.stream.fates() == {group_id: Fate.DEAD}
    reason = company.letters()[group_id]
    assert reason.startswith("policy: 503 Scripted failure")
    assert reason.endswith("(attempt 2 of 2)")
    assert company.stream.outstanding() == 0
    assert worker.outcomes() == {"buried": 1}


def test_nothing_is_sampled_while_the_policy_serves_the_weights_of_another_run(
    company: Company,
) -> None:
    company.script.run = "the-run-before"
    worker = Worker(company, max_attempts=2)
    group_id, payload = feed(company)
    with worker.loop:
        worker.deliveries.handle(payload)
        assert company.script.requests == []
        assert company.script.num_described == 2
        assert "serves weights of run 'the-run-before'" in company.letters()[group_id]
        company.script.run = RUN
        worker.deliveries.handle(feed(company, 1)[1])
    assert worker.outcomes() == {"buried": 1, "appended": 1}


def test_what_asking_again_cannot_mend_is_buried_at_once(company: Company, worker: Worker) -> None:
    company.script.failures.extend([422] * 1000)
    group_id, payload = feed(company)
    worker.deliveries.handle(payload)
    assert company.stream.fates() == {group_id: Fate.DEAD}
    assert company.script.num_described == 1
    assert "422" in company.letters()[group_id]
    assert worker.value("medvr_rollout_retries_total", service="policy") == 0


def test_an_image_that_zoom_does_not_know_is_buried(company: Company, worker: Worker) -> None:
    group_id, payload = feed(company)
    worker.deliveries.handle(payload.replace(company.problems[0].image, "0" * 64))
    assert company.stream.fates() == {group_id: Fate.DEAD}
    assert company.letters()[group_id].startswith("zoom: 404")


def test_an_attempt_that_takes_too_long_is_buried(company: Company) -> None:
    company.gate.clear()
    worker = Worker(company, group_timeout_s=0.5)
    group_id, payload = feed(company)
    with worker.loop:
        worker.deliveries.handle(payload)
    assert company.letters()[group_id] == "took longer than 0.5 s"


def test_a_task_that_keeps_taking_its_worker_down_is_buried(
    company: Company, worker: Worker
) -> None:
    group_id, payload = feed(company)
    company.stream.client.hset(f"medvr:run:{RUN}:deliveries", group_id, 5)
    worker.deliveries.handle(payload)
    assert company.letters() == {group_id: "delivered 5 times in vain"}
    assert company.script.requests == []


def test_a_task_that_is_no_longer_wanted_asks_nobody(company: Company, worker: Worker) -> None:
    _, payload = feed(company)
    worker.deliveries.handle(payload)
    num_requests = len(company.script.requests)
    worker.deliveries.handle(payload)
    company.stream.finish()
    worker.deliveries.handle(feed(company, 1)[1])
    assert worker.outcomes() == {"appended": 1, "unwanted": 2}
    assert len(company.script.requests) == num_requests


def test_a_payload_of_nobody_becomes_a_letter_and_fates_nothing(
    company: Company, worker: Worker
) -> None:
    feed(company)
    worker.deliveries.handle("not JSON", "another:0:p0")
    assert worker.outcomes() == {"rejected": 1}
    assert company.stream.fates() == {}
    assert company.letters()[""].startswith("not a rollout payload")


class OftenAway(RunStream):
    """A run whose Redis does not answer some of the questions about a group."""

    num_looks = 0

    def is_wanted(self, group_id: str) -> bool:
        self.num_looks += 1
        if self.num_looks == 2:
            raise redis.ConnectionError("away while the group is made")
        return super().is_wanted(group_id)

    def append(self, group_id: str, payload: bytes) -> bool:
        if self.num_looks < 4:
            raise redis.TimeoutError("away when the group is there")
        return super().append(group_id, payload)


def test_a_redis_that_is_away_costs_a_group_neither_its_life_nor_a_delivery(
    company: Company,
) -> None:
    company.script.failures.extend([503] * 4)
    worker = Worker(company, OftenAway(company.stream.client, RUN), max_deliveries=1)
    _, payload = feed(company)
    with worker.loop:
        for reason in ("ConnectionError", "TimeoutError"):
            with pytest.raises(Reject, match=reason) as caught:
                worker.deliveries.handle(payload)
            assert caught.value.requeue is True
        worker.deliveries.handle(payload)
    assert worker.outcomes() == {"requeued": 2, "appended": 1}
    assert (company.letters(), company.stream.length()) == ({}, 1)


WORDS = "is there a bleeding in the left lobe"


class FailingLoop(RolloutLoop):
    """With a bug that quotes what it works on."""

    def make_group(self, *_: object) -> None:
        raise KeyError(WORDS)


def test_what_nobody_foresaw_is_a_letter_with_its_words_and_a_line_without(
    company: Company, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(company, loop_type=FailingLoop)
    group_id, payload = feed(company)
    with worker.loop:
        worker.deliveries.handle(payload)
    assert company.letters() == {group_id: f"unexpected KeyError: '{WORDS}'"}
    assert worker.outcomes() == {"buried": 1}
    assert WORDS not in "".join(str(vars(record)) for record in caplog.records)
    (record,) = (r for r in caplog.records if "unexpectedly" in r.message)
    assert "in make_group" in vars(record)["exception"]


def test_a_stopping_worker_gives_back_what_it_is_offered(company: Company, worker: Worker) -> None:
    _, payload = feed(company)
    worker.loop.interrupt()
    with pytest.raises(Reject) as caught:
        worker.deliveries.handle(payload)
    assert caught.value.requeue is True
    assert worker.outcomes() == {"requeued": 1}
    counts = company.stream.client.hgetall(f"medvr:run:{RUN}:deliveries")
    assert set(counts.values()) == {b"0"}
