import signal

from services.rollout.task import encode_task, queue_of
from tests.rollout.company import RUN, Company, until
from tests.rollout.scripted_policy import answer, look, rest_of_look

BOX = (21, 21, 63, 63)


def test_a_fed_problem_comes_back_as_one_scored_group(company: Company) -> None:
    for name in ("b00", "b01", "b00/0", "b01/0"):
        is_base = name.startswith("b") and "/" not in name
        turn = look(BOX, inside=1.25) if is_base else rest_of_look((84, 84, 126, 126))
        company.script.rehearse(f"{RUN}:0:p0/{name}", turn, answer("A" if is_base else "B"))
    worker = company.start_worker(base_probability=1.0)
    worker.wait_ready()
    (group_id,) = company.feed(0)
    (group,) = company.groups(1)

    assert (group.group_id, group.problem_id, group.round) == (group_id, "p0", 0)
    assert group.arm == "evr+cca"
    by_name = {t.trajectory_id.removeprefix(f"{group_id}/"): t.reward for t in group.trajectories}
    assert set(by_name) == {"b00", "b01", "b00/0", "b01/0"}
    totals = {name: reward.total for name, reward in by_name.items() if reward is not None}
    assert totals == {"b00": 2.0, "b01": 2.0, "b00/0": 0.0, "b01/0": 0.0}
    assert [box.as_tuple() for box in group.consensus] == [(42, 42, 126, 126)]
    assert 0 < group.rollout_seconds < 300
    assert company.stream.outstanding() == 1
    until(lambda: worker.metric('medvr_rollout_groups_total{outcome="appended"}') == 1)
    assert worker.metric('medvr_rollout_trajectories_total{origin="drawn"}') == 2
    until(lambda: unacknowledged(company) == 0)
    assert worker.stop(signal.SIGTERM) == 0


def unacknowledged(company: Company) -> int:
    return company.stream.client.hlen(f"medvr:run:{RUN}:celery:unacked")


def test_a_group_whose_worker_was_killed_is_completed_once_by_the_next_one(
    company: Company,
) -> None:
    company.gate.clear()
    first = company.start_worker()
    company.feed(0)
    until(lambda: len(company.script.requests) > 0)
    first.stop(signal.SIGKILL)
    company.gate.set()
    assert company.stream.length() == 0
    assert unacknowledged(company) == 1

    let_the_visibility_timeout_pass(company)
    second = company.start_worker()
    (group,) = company.groups(1)
    assert len(group.trajectories) == 4
    until(lambda: unacknowledged(company) == 0)
    assert company.stream.client.llen(queue_of(RUN).list_key) == 0
    assert second.stop(signal.SIGTERM) == 0
    assert company.stream.length() == 1
    assert company.stream.fates() == {}


def let_the_visibility_timeout_pass(company: Company) -> None:
    """Make every delivery look as if it had been made long ago, instead of waiting."""
    index = queue_of(RUN).unacked_index_key
    client = company.stream.client
    client.zadd(
        index, {tag: score - 600 for tag, score in client.zrange(index, 0, -1, withscores=True)}
    )


def test_a_living_worker_renews_its_delivery_and_a_killed_one_does_not(company: Company) -> None:
    company.gate.clear()
    first = company.start_worker(visibility_timeout_s=2)
    company.feed(0)
    until(lambda: unacknowledged(company) == 1)
    times = set()
    until(lambda: times.add(time_of_delivery(company)) or len(times) > 3)
    first.stop(signal.SIGKILL)
    left_at = time_of_delivery(company)
    assert left_at == max(times)

    company.gate.set()
    company.start_worker(visibility_timeout_s=2)
    assert len(company.groups(1)) == 1
    until(lambda: unacknowledged(company) == 0)
    assert company.stream.length() == 1


def time_of_delivery(company: Company) -> float:
    """When the one unacknowledged delivery was made or renewed."""
    index = queue_of(RUN).unacked_index_key
    ((_, renewed_at),) = company.stream.client.zrange(index, 0, -1, withscores=True)
    return renewed_at


def test_no_question_or_answer_is_ever_logged(company: Company) -> None:
    company.script.failures.extend([422])
    worker = company.start_worker(log_level="DEBUG")
    company.feed(0, 1)
    company.groups(1)
    until(lambda: len(company.letters()) == 1)
    assert worker.stop(signal.SIGTERM) == 0
    log = company.log.read_text()
    assert "buried: " in log
    for secret in (company.problems[0].question, '"disc"', "gold_answer", "clear now"):
        assert secret not in log


def test_a_worker_that_is_told_to_stop_gives_its_group_back_at_once(company: Company) -> None:
    company.gate.clear()
    first = company.start_worker()
    company.feed(0)
    until(lambda: len(company.script.requests) > 0)
    assert first.stop(signal.SIGTERM) == 0
    assert company.stream.client.llen(queue_of(RUN).list_key) == 1
    assert unacknowledged(company) == 0
    company.gate.set()
    company.start_worker()
    assert len(company.groups(1)) == 1
    counts = company.stream.client.hgetall(f"medvr:run:{RUN}:deliveries")
    until(lambda: company.stream.client.hlen(f"medvr:run:{RUN}:deliveries") == 0)
    assert set(counts.values()) <= {b"1"}, "the delivery that was given back does not count"


def test_a_task_that_is_delivered_twice_appends_once(company: Company) -> None:
    company.gate.clear()
    worker = company.start_worker()
    company.feed(0)
    company.send(encode_task(company.task(0)))
    worker.wait_ready()
    until(lambda: worker.metric('medvr_rollout_groups_total{outcome="duplicate"}') == 1)
    assert company.script.num_described == 1, "it is in work already"
    company.gate.set()
    assert len(company.groups(1)) == 1
    num_requests = len(company.script.requests)
    company.send(encode_task(company.task(0)))
    until(lambda: worker.metric('medvr_rollout_groups_total{outcome="unwanted"}') == 1)
    assert company.stream.length() == 1
    assert len(company.script.requests) == num_requests, "the third one asked nobody"


def test_several_groups_run_at_a_time_in_one_process(company: Company) -> None:
    company.gate.clear()
    worker = company.start_worker(concurrency=3)
    company.feed(0, 1, 2)
    until(lambda: worker.probe("/health") == 200)
    until(lambda: worker.metric("medvr_rollout_running_groups") == 3)
    company.gate.set()
    groups = company.groups(3)
    assert {group.problem_id for group in groups} == {"p0", "p1", "p2"}
    ids = [t.trajectory_id for group in groups for t in group.trajectories]
    assert len(set(ids)) == 12
