"""The trainer's end of the stream against a real Valkey, without a model behind it."""

import threading

import redis

from services.trainer.delivery import Delivery
from shared.stream import Fate, RunStream


def fill(stream: RunStream, *group_ids: str) -> None:
    """Feeder and worker: these groups are fed from the start on, and on the stream."""
    for position, group_id in enumerate(group_ids):
        assert stream.mark_fed(group_id, position)
        assert stream.append(group_id, b"payload")


def collect(delivery: Delivery) -> str:
    """The id of the next group, held for training."""
    entry = delivery.next_entry(5.0)
    assert entry is not None
    delivery.hold(entry)
    return entry.group_id


def test_an_emptied_redis_hears_of_a_trained_group_only_after_its_checkpoint(
    valkey: redis.Redis,
) -> None:
    """Else no restarted trainer would train it: its fate would say that this was done."""
    stream = RunStream(valkey, "run")
    never = threading.Event()
    delivery = Delivery(stream, fates={}, cursor=0, stop=never, on_reopened=lambda: None)
    delivery.open()
    fill(stream, "a")
    delivery.mark_trained([collect(delivery)])
    delivery.snapshot()
    valkey.flushall()
    assert delivery.next_entry(0.1) is None
    assert (stream.fates(), stream.cursor()) == ({}, 1)
    assert stream.missing(["a"]) == ["a"]

    fill(stream, "a", "b")
    assert collect(delivery) == "b"
    assert delivery.snapshot() == ({"a": Fate.TRAINED}, 2)
    delivery.settle_trained(delivery.snapshot()[0])
    assert stream.fates() == {"a": Fate.TRAINED}
    assert (stream.length(), stream.outstanding()) == (1, 1)


def test_a_version_is_announced_however_long_redis_is_away(valkey: redis.Redis) -> None:
    answers = iter([redis.ConnectionError("away"), redis.TimeoutError("still"), None])
    announced: list[str] = []

    def announce() -> None:
        answer = next(answers)
        if answer is not None:
            raise answer
        announced.append("version 7")

    stream, never = RunStream(valkey, "run"), threading.Event()
    Delivery(stream, fates={}, cursor=0, stop=never, on_reopened=announce).announce()
    assert announced == ["version 7"]


def test_a_run_emptied_in_the_moment_of_its_end_keeps_its_fates(valkey: redis.Redis) -> None:
    class EmptiedAtTheEnd(RunStream):
        def finish(self) -> int | None:
            if not opened[1:]:
                valkey.flushall()
            return super().finish()

    opened: list[str] = []
    delivery = Delivery(
        EmptiedAtTheEnd(valkey, "run"),
        fates={"a": Fate.TRAINED},
        cursor=1,
        stop=threading.Event(),
        on_reopened=lambda: opened.append("again"),
    )
    delivery.open()
    assert delivery.finish() == 0
    assert RunStream(valkey, "run").fates() == {"a": Fate.TRAINED}
    assert len(opened) == 2
