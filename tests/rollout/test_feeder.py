import signal
from collections import Counter

import pytest
from prometheus_client import CollectorRegistry

from services.rollout.feeder import LOST_AFTER_S, Feeder
from services.rollout.metrics import FeederMetrics
from services.rollout.order import ProblemOrder
from services.rollout.task import RolloutTask, queue_of, send_task
from shared.stream import Fate, RunState, RunStream
from shared.trajectory import make_group_id
from tests.rollout.company import NUM_PROBLEMS, RUN, Company, until


class Hand:
    """A feeder that notes what it sends on its way to the real queue."""

    def __init__(
        self,
        company: Company,
        *,
        max_outstanding: int = 4,
        seed: int = 0,
        stream: RunStream | None = None,
    ) -> None:
        self.sent: list[str] = []
        self.dies_after_sending = False
        self.registry = CollectorRegistry()
        self._company = company
        self.now = 0.0
        self._feeder = Feeder(
            stream or company.stream,
            ProblemOrder(RUN, company.problems, seed),
            self._send,
            FeederMetrics(self.registry),
            max_outstanding=max_outstanding,
            clock=lambda: self.now,
        )

    def _send(self, task: RolloutTask) -> None:
        with queue_of(RUN).celery(self._company.redis_url) as app:
            send_task(app, task)
        self.sent.append(task.group_id)
        if self.dies_after_sending:
            raise KeyboardInterrupt

    def feed(self) -> int:
        return self._feeder.feed()

    def close(self) -> int:
        return self._feeder.close()

    def value(self, name: str) -> float | None:
        return self.registry.get_sample_value(name)


def settle(company: Company, *group_ids: str) -> None:
    """As the trainer does with groups that came back."""
    for group_id in group_ids:
        company.stream.append(group_id, b"a group")
    entries = company.stream.read_new(100, 10)
    company.stream.settle([(entry, Fate.TRAINED) for entry in entries])


def num_queued(company: Company) -> int:
    return company.stream.client.llen(queue_of(RUN).list_key)


def test_a_round_is_a_permutation_and_rounds_differ(company: Company) -> None:
    order = ProblemOrder(RUN, company.problems * 4, seed=1)
    size = NUM_PROBLEMS * 4
    ids = [order.task_at(position).problem.problem_id for position in range(3 * size)]
    rounds = [ids[start : start + size] for start in range(0, 3 * size, size)]
    expected = Counter(problem.problem_id for problem in company.problems * 4)
    assert all(Counter(one) == expected for one in rounds)
    assert len({tuple(one) for one in rounds}) == 3


def test_a_position_and_a_seed_fix_the_task(company: Company) -> None:
    order = ProblemOrder(RUN, company.problems, seed=1)
    task = order.task_at(NUM_PROBLEMS + 1)
    assert task == ProblemOrder(RUN, company.problems, seed=1).task_at(NUM_PROBLEMS + 1)
    assert (task.round, task.position) == (1, NUM_PROBLEMS + 1)
    assert task.group_id == make_group_id(RUN, 1, task.problem.problem_id)
    orders = {
        tuple(ProblemOrder(RUN, company.problems, seed).task_at(n).group_id for n in range(12))
        for seed in range(8)
    }
    assert len(orders) == 8


def test_a_problem_set_without_problems_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one problem"):
        ProblemOrder(RUN, [], seed=0)


def test_never_more_than_the_bound_is_outstanding(company: Company) -> None:
    hand = Hand(company, max_outstanding=2)
    assert hand.feed() == 2
    assert hand.feed() == 0
    assert (company.stream.outstanding(), num_queued(company)) == (2, 2)
    settle(company, hand.sent[0])
    assert hand.feed() == 1
    assert (company.stream.outstanding(), company.stream.cursor()) == (2, 3)
    assert hand.value("medvr_feeder_outstanding") == 2
    assert hand.value("medvr_feeder_queue_depth") == 3
    assert hand.value("medvr_feeder_fed_total") == 3


def test_a_restarted_feeder_goes_on_where_the_other_stopped(company: Company) -> None:
    first = Hand(company, max_outstanding=3)
    first.feed()
    settle(company, *first.sent[:2])
    second = Hand(company, max_outstanding=3)
    second.feed()
    assert len(first.sent + second.sent) == len(set(first.sent + second.sent)) == 5
    order = ProblemOrder(RUN, company.problems, seed=0)
    assert first.sent + second.sent == [order.task_at(n).group_id for n in range(5)]
    assert second.value("medvr_feeder_refed_total") == 0


def test_a_feeder_killed_between_queue_and_mark_queues_the_same_group_again(
    company: Company,
) -> None:
    first = Hand(company, max_outstanding=1)
    first.dies_after_sending = True
    with pytest.raises(KeyboardInterrupt):
        first.feed()
    assert company.stream.cursor() == 0
    second = Hand(company, max_outstanding=1)
    second.feed()
    assert second.sent == first.sent
    assert (company.stream.cursor(), company.stream.outstanding()) == (1, 1)
    company.start_worker(group_size=2)
    assert len(company.groups(1)) == 1
    until(lambda: num_queued(company) == 0)
    assert company.stream.append(first.sent[0], b"again") is False


def test_after_an_emptied_redis_what_was_lost_is_fed_again_and_nothing_else(
    company: Company,
) -> None:
    hand = Hand(company, max_outstanding=4)
    hand.feed()
    trained = {hand.sent[1]: Fate.TRAINED}
    company.stream.client.flushall()
    assert hand.feed() == 0, "the trainer has not opened the run again"
    company.stream.open(trained, cursor=3)
    before = list(hand.sent)
    assert hand.feed() == 4
    lost, new = hand.sent[4:6], hand.sent[6:]
    assert lost == [before[0], before[2]]
    order = ProblemOrder(RUN, company.problems, seed=0)
    assert new == [order.task_at(3).group_id, order.task_at(4).group_id]
    assert hand.value("medvr_feeder_refed_total") == 2
    assert num_queued(company) == 4, "the messages did reach the emptied queue"
    assert company.stream.cursor() == len(company.stream.fates()) + company.stream.outstanding()
    assert hand.feed() == 0


class EmptiedAfterALook(RunStream):
    """A run whose Redis is emptied right after the feeder saw that it is running."""

    is_emptied_next = False

    def state(self) -> RunState | None:
        state = super().state()
        if self.is_emptied_next:
            self.is_emptied_next = False
            self.client.flushall()
        return state


def test_a_redis_emptied_while_the_feeder_looks_is_noticed_all_the_same(company: Company) -> None:
    stream = EmptiedAfterALook(company.stream.client, RUN)
    hand = Hand(company, max_outstanding=4, stream=stream)
    hand.feed()
    before = list(hand.sent)
    stream.is_emptied_next = True
    assert hand.feed() == 0
    hand.sent.clear()
    stream.open({}, cursor=4)
    assert hand.feed() == 4
    assert hand.sent == before


def test_a_task_that_a_dying_worker_took_along_is_queued_again(company: Company) -> None:
    hand = Hand(company, max_outstanding=3)
    hand.feed()
    company.gate.clear()
    worker = company.start_worker(concurrency=1)
    until(lambda: len(company.script.requests) > 0)
    worker.stop(signal.SIGKILL)
    assert (
        company.stream.client.rpop(queue_of(RUN).list_key) is not None
    )  # popped for one that is gone
    company.stream.client.lpush(queue_of(RUN).list_key, "no task of anybody's")
    waiting = num_queued(company)

    for _ in range(3):
        hand.feed()
        hand.now += LOST_AFTER_S
    hand.feed()

    lost = hand.sent[3:]
    assert len(lost) == 1, "neither what waits nor what the killed worker had noted"
    assert lost[0] in hand.sent[:3]
    assert num_queued(company) == waiting + 1
    assert company.stream.client.lrem(queue_of(RUN).list_key, 1, "no task of anybody's") == 1
    company.gate.set()
    company.start_worker(visibility_timeout_s=1)
    assert {group.group_id for group in company.groups(3)} == set(hand.sent[:3])


def test_what_came_back_is_not_missed(company: Company) -> None:
    hand = Hand(company, max_outstanding=3)
    hand.feed()
    company.start_worker()
    company.groups(3)
    until(lambda: num_queued(company) == 0)
    for _ in range(3):
        hand.now += LOST_AFTER_S
        hand.feed()
    assert len(hand.sent) == 3


def test_what_an_emptied_redis_made_the_trainer_forget_is_surplus_at_the_end(
    company: Company,
) -> None:
    """Emptied just before the end, when the feeder could not feed again, with an old cursor."""
    hand = Hand(company, max_outstanding=6)
    hand.feed()
    company.stream.client.flushall()
    company.stream.open({hand.sent[0]: Fate.TRAINED}, cursor=2)
    settle(company, hand.sent[4])  # a worker had it in hand
    company.stream.finish()
    assert hand.close() == 3
    order = ProblemOrder(RUN, company.problems, seed=0)
    ids = [order.task_at(position).group_id for position in range(5)]
    trained, surplus = Fate.TRAINED, Fate.SURPLUS
    assert company.stream.fates() == dict(
        zip(ids, [trained, surplus, surplus, surplus, trained], strict=True)
    )
    assert (company.stream.cursor(), company.stream.outstanding()) == (5, 0)
    assert hand.close() == 0


def test_a_restart_with_an_intact_redis_feeds_nothing_again(company: Company) -> None:
    Hand(company, max_outstanding=4).feed()
    again = Hand(company, max_outstanding=4)
    assert again.feed() == 0
    assert again.sent == []


def test_nothing_is_fed_before_the_run_is_open_or_after_it_is_finished(company: Company) -> None:
    hand = Hand(company)
    company.stream.client.flushall()
    assert hand.feed() == 0
    company.stream.open({}, 0)
    assert hand.feed() == 4
    company.stream.finish()
    assert hand.feed() == 0


def test_a_feeder_with_another_bound_than_the_trainer_ends_with_a_message(
    company: Company,
) -> None:
    company.stream.announce_bound(8)
    assert Hand(company, max_outstanding=8).feed() == 8
    feeder = company.start("feeder", max_outstanding=9)
    assert feeder.popen.wait(timeout=120) == 1
    assert "max_outstanding is 9, but the trainer of run 'run' has 8" in company.log.read_text()
    assert company.stream.cursor() == 8


def test_the_process_waits_for_the_run_feeds_its_groups_and_ends_with_it(company: Company) -> None:
    company.stream.client.flushall()
    feeder = company.start("feeder", max_outstanding=8, max_groups=5, poll_interval_s=0.05)
    until(lambda: feeder.probe("/ready") == 200)
    assert company.stream.cursor() == 0
    company.stream.open({}, 0)
    until(lambda: company.stream.outstanding() == 5)
    assert feeder.metric("medvr_feeder_fed_total") == 5
    assert num_queued(company) == 5
    company.stream.finish()
    assert feeder.popen.wait(timeout=120) == 0
    assert company.stream.cursor() == 5


def test_the_process_stops_cleanly_when_told(company: Company) -> None:
    feeder = company.start("feeder")
    until(lambda: company.stream.outstanding() > 0)
    assert feeder.stop(signal.SIGTERM) == 0
