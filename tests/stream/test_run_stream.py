import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
from redis.client import Pipeline

from shared.stream import Fate, RunState, RunStream


@pytest.fixture
def stream(valkey: redis.Redis) -> RunStream:
    run_stream = RunStream(valkey, "r")
    run_stream.open({}, 0)
    return run_stream


def feed(stream: RunStream, *group_ids: str) -> None:
    for position, group_id in enumerate(group_ids, start=stream.cursor()):
        stream.mark_fed(group_id, position)


class Overtaken(redis.Redis):
    """A client that is overtaken by another process right before each of its transactions."""

    overtake: Callable[[], None]

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Pipeline:
        overtake = self.overtake

        class OvertakenPipeline(Pipeline):
            def execute(self, raise_on_error: bool = True) -> list[Any]:
                overtake()
                return super().execute(raise_on_error)

        arguments = (self.connection_pool, self.response_callbacks, transaction, shard_hint)
        return OvertakenPipeline(*arguments)


def overtaken(stream: RunStream, overtake: Callable[[], None]) -> RunStream:
    """The same run, as a process sees it that another one overtakes."""
    client = Overtaken(connection_pool=stream.client.connection_pool)
    client.overtake = overtake
    return RunStream(client, stream.run)


def test_appending_the_same_group_twice_leaves_one_entry(stream: RunStream) -> None:
    feed(stream, "g")
    assert stream.append("g", b"first") is True
    assert stream.append("g", b"second") is False
    assert [e.payload for e in stream.read_new(10, 10)] == [b"first"]


def test_a_settled_group_cannot_be_appended_again(stream: RunStream) -> None:
    feed(stream, "g")
    stream.append("g", b"payload")
    (entry,) = stream.read_new(10, 10)
    stream.settle([(entry, Fate.TRAINED)])
    assert stream.append("g", b"payload") is False
    assert stream.fates() == {"g": Fate.TRAINED}
    assert (stream.length(), stream.outstanding(), stream.cursor()) == (0, 0, 1)


def test_an_unsettled_entry_is_pending_for_the_next_trainer(stream: RunStream) -> None:
    feed(stream, "a", "b")
    stream.append("a", b"1")
    stream.append("b", b"2")
    first, second = stream.read_new(10, 10)
    stream.settle([(first, Fate.STALE)])
    assert stream.read_pending() == [second]
    assert stream.read_new(10, 10) == []


def test_the_first_fate_wins(stream: RunStream) -> None:
    feed(stream, "g")
    stream.append("g", b"x")
    (entry,) = stream.read_new(1, 10)
    stream.bury(entry, "does not validate")
    stream.settle([(entry, Fate.STALE)])
    stream.open({"g": Fate.NO_SIGNAL}, cursor=1)
    assert stream.fates() == {"g": Fate.DEAD}
    ((_, letter),) = stream.client.xrange(stream.dead_key)
    assert letter[b"reason"] == b"does not validate"


def test_what_a_checkpoint_holds_is_trained_whatever_became_of_a_second_attempt(
    stream: RunStream, valkey: redis.Redis
) -> None:
    """Redis was emptied while the trainer held them; both were fed again, and died."""
    feed(stream, "a", "b")
    stream.append("a", b"x")
    (entry,) = stream.read_new(1, 10)
    valkey.flushall()
    stream.open({}, cursor=2)
    for group_id in ("a", "b"):
        assert stream.give_up(group_id, "zoom is away") is True
    stream.settle([(entry, Fate.TRAINED)])
    stream.open({"b": Fate.TRAINED}, cursor=2)
    assert stream.fates() == {"a": Fate.TRAINED, "b": Fate.TRAINED}


def test_groups_left_at_the_end_are_surplus_and_no_longer_wanted(stream: RunStream) -> None:
    feed(stream, "a", "b")
    stream.append("a", b"1")
    assert stream.is_wanted("b")
    assert stream.finish() == 2
    assert stream.fates() == {"a": Fate.SURPLUS, "b": Fate.SURPLUS}
    assert not stream.is_wanted("b")
    assert stream.append("b", b"late") is False
    assert stream.append("c", b"taken, and not yet marked as fed") is False
    assert (stream.state(), stream.length()) == (RunState.FINISHED, 0)


def test_a_run_that_was_emptied_away_is_not_finished(
    stream: RunStream, valkey: redis.Redis
) -> None:
    feed(stream, "a")
    valkey.flushall()
    assert stream.finish() is None
    assert stream.state() is None
    stream.open({"a": Fate.TRAINED}, cursor=1)
    assert (stream.finish(), stream.finish()) == (0, 0)
    assert stream.fates() == {"a": Fate.TRAINED}


def test_a_group_fed_in_the_last_moment_does_not_keep_a_run_from_ending(stream: RunStream) -> None:
    feed(stream, "a")
    overtaken(stream, lambda: feed(stream, "b")).finish()
    assert stream.state() is RunState.FINISHED
    assert (len(stream.fates()), stream.outstanding()) == (stream.cursor(), 0)


def test_an_emptied_redis_is_restored_from_the_checkpoint_and_the_difference_is_missing(
    stream: RunStream, valkey: redis.Redis
) -> None:
    feed(stream, "a", "b", "c")
    valkey.flushall()
    assert stream.state() is None
    stream.open({"a": Fate.TRAINED}, cursor=3)
    assert stream.cursor() == 3
    assert stream.missing(["a", "b", "c"]) == ["b", "c"]


def test_opening_again_moves_nothing_back(stream: RunStream) -> None:
    feed(stream, "a", "b")
    stream.open({"a": Fate.NO_SIGNAL}, cursor=1)
    assert stream.cursor() == 2
    assert stream.outstanding() == 1


def test_opening_does_not_take_back_what_the_feeder_marks_meanwhile(stream: RunStream) -> None:
    feed(stream, "a")
    overtaken(stream, lambda: feed(stream, "b")).open({}, cursor=0)
    assert (stream.cursor(), stream.outstanding()) == (2, 2)


def test_a_group_that_found_its_fate_before_its_mark_is_not_outstanding(stream: RunStream) -> None:
    assert stream.give_up("g", "died at once") is True
    assert stream.mark_fed("g", 0) is True
    assert (stream.cursor(), stream.outstanding()) == (1, 0)


def test_a_group_on_the_stream_is_not_given_up_by_a_second_worker(stream: RunStream) -> None:
    feed(stream, "g")
    stream.append("g", b"payload")
    assert stream.give_up("g", "the second delivery failed") is False
    (entry,) = stream.read_new(10, 10)
    stream.settle([(entry, Fate.TRAINED)])
    assert stream.give_up("g", "and so did the third") is False
    assert stream.fates() == {"g": Fate.TRAINED}
    assert stream.client.xlen(stream.dead_key) == 0


def test_nothing_is_marked_as_fed_in_a_finished_run(stream: RunStream) -> None:
    stream.finish()
    assert stream.mark_fed("g", 0) is False
    assert (stream.cursor(), stream.outstanding()) == (0, 0)


def test_the_stream_tells_what_is_unread_and_how_long_the_oldest_has_waited(
    valkey: redis.Redis,
) -> None:
    stream = RunStream(valkey, "r")
    stream.open({}, 0)
    assert (stream.lag(), stream.oldest_age_s()) == (0, 0.0)
    for position, group_id in enumerate(("a", "b", "c")):
        stream.mark_fed(group_id, position)
        stream.append(group_id, b"")
    time.sleep(0.05)
    assert stream.lag() == 3
    (entry,) = stream.read_new(1, 10)
    assert stream.lag() == 2
    assert 0.05 <= stream.oldest_age_s() < 60
    stream.settle([(entry, Fate.TRAINED)])
    assert (stream.lag(), stream.length()) == (2, 2)


def test_an_emptied_redis_has_no_lag(stream: RunStream, valkey: redis.Redis) -> None:
    valkey.flushall()
    assert (stream.lag(), stream.oldest_age_s(), stream.length()) == (0, 0.0, 0)
