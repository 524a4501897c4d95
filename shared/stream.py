"""The run's state in Redis: which groups were fed, which came back, and what became of each.

At-least-once delivery, exactly-once effect (docs/decisions/0009). For a run, at all times,

    cursor = |fates| + |outstanding|      and      appended ⊆ outstanding

where *cursor* counts the groups the feeder has handed out, *outstanding* holds the ids without a
fate, *appended* those of them whose group is on the stream. Every step that moves an id is one
MULTI or one script (`stream_scripts`), so a process killed between two commands changes nothing.
Appending is idempotent: a group that is already on the stream, or already has its fate, is not
added again. The first fate is the last, but for *trained*: a checkpoint holds it, so it is true.

Who does what: the feeder feeds, the rollout worker appends or gives up, the trainer settles
or buries. After an emptied Redis the trainer restores fates and cursor from its checkpoint, and
the feeder feeds the difference again.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, cast

import redis
from redis.backoff import ExponentialBackoff
from redis.client import Pipeline
from redis.retry import Retry

from shared import stream_scripts as scripts

CONSUMER_GROUP = "trainer"
CONSUMER = "trainer-0"
"""Fixed, so that a restarted trainer owns the pending list of the one before it."""


class Fate(StrEnum):
    """What became of a fed group; each has exactly one."""

    TRAINED = "trained"
    STALE = "stale"
    NO_SIGNAL = "no_signal"
    DEAD = "dead"
    SURPLUS = "surplus"
    """Left when the run ended."""


class RunState(StrEnum):
    """Lifecycle of a run, owned by the trainer."""

    RUNNING = "running"
    FINISHED = "finished"


class StreamEntry(NamedTuple):
    """One undelivered group: its entry on the stream, its id and its bytes."""

    entry_id: str
    group_id: str
    """Empty for an entry that nobody of ours wrote."""
    payload: bytes


def _text_or_nothing(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return ""


def connect_redis(url: str) -> "redis.Redis":
    """A client for `RunStream` that waits out a restart of Redis (about a minute)."""
    return redis.Redis.from_url(
        url,
        retry=Retry(ExponentialBackoff(cap=5, base=0.1), 16),
        retry_on_error=[redis.ConnectionError, redis.TimeoutError],
    )


class RunStream:
    """The keys of one run. `client` must not decode responses (payloads are bytes)."""

    def __init__(self, client: redis.Redis, run: str) -> None:
        self.client = client
        self.run = run
        prefix = f"medvr:run:{run}"
        self.groups_key = f"{prefix}:groups"
        self.fates_key = f"{prefix}:fates"
        self.appended_key = f"{prefix}:appended"
        self.outstanding_key = f"{prefix}:outstanding"
        self.cursor_key = f"{prefix}:cursor"
        self.state_key = f"{prefix}:state"
        self.dead_key = f"{prefix}:dead"
        self.feeder_key = f"{prefix}:feeder"
        self.bound_key = f"{prefix}:max_outstanding"

    # -- the run ------------------------------------------------------------------------------

    def state(self) -> RunState | None:
        """None before the trainer opened the run, or after Redis was emptied."""
        value = cast("bytes | None", self.client.get(self.state_key))
        return None if value is None else RunState(value.decode())

    def open(self, fates: Mapping[str, Fate], cursor: int) -> None:
        """Trainer, at start and after an emptied Redis: make its checkpoint's state true here.

        Idempotent: existing fates win (but over *trained*), the cursor never moves back.
        """
        with self.client.pipeline(transaction=True) as pipe:
            for group_id, fate in fates.items():
                self._put_fate(pipe, group_id, fate)
                pipe.srem(self.outstanding_key, group_id)
            pipe.eval(scripts.RAISE_CURSOR, 1, self.cursor_key, cursor)
            pipe.set(self.state_key, RunState.RUNNING.value)
            pipe.execute()
        try:
            self.client.xgroup_create(self.groups_key, CONSUMER_GROUP, id="0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def announce_bound(self, max_outstanding: int) -> None:
        """Trainer: the bound on groups without a fate that its own settings were checked with."""
        self.client.set(self.bound_key, max_outstanding)

    def finish(self) -> int | None:
        """Trainer, at the end: every group without a fate is surplus; returns how many.

        None, and nothing is done, if the run is not open: Redis was emptied, fates and all.
        """
        keys = [
            *(self.outstanding_key, self.fates_key, self.appended_key),
            *(self.groups_key, self.state_key),
        ]
        fate, state = Fate.SURPLUS.value, RunState.FINISHED.value
        num_left = int(cast("int", self.client.eval(scripts.FINISH, len(keys), *keys, fate, state)))
        return None if num_left < 0 else num_left

    # -- the feeder ---------------------------------------------------------------------------

    def register_feeder(self, mark: bytes) -> bool:
        """Put the feeder's mark into the running run; False if it is there, or no run is.

        True means that this Redis is new to the feeder: emptied since, or never seen. The mark is
        only put beside what the trainer restored, so it cannot outlive the next loss of that.
        """
        keys = [self.state_key, self.feeder_key]
        arguments = [RunState.RUNNING.value, mark]
        return bool(self.client.eval(scripts.REGISTER_FEEDER, len(keys), *keys, *arguments))

    def announced_bound(self) -> int | None:
        """None before the trainer has told it."""
        value = cast("bytes | None", self.client.get(self.bound_key))
        return None if value is None else int(value)

    def cursor(self) -> int:
        """How many groups have been fed."""
        return int(cast("bytes | None", self.client.get(self.cursor_key)) or 0)

    def outstanding(self) -> int:
        """How many fed groups have no fate yet."""
        return self.client.scard(self.outstanding_key)

    def unreturned(self) -> set[str]:
        """Fed groups that are neither on the stream nor have a fate: somebody is to make them."""
        ids = cast("set[bytes]", self.client.sdiff([self.outstanding_key, self.appended_key]))
        return {group_id.decode() for group_id in ids}

    def mark_fed(self, group_id: str, position: int) -> bool:
        """Feeder, after the task was queued: the group at `position` (from 0) is outstanding.

        A group that found its fate in the meantime is not (the task comes before this mark). False
        if the run is not running: then nothing is marked.
        """
        keys = [self.state_key, self.fates_key, self.outstanding_key, self.cursor_key]
        arguments = [RunState.RUNNING.value, group_id, position + 1]
        return bool(self.client.eval(scripts.MARK_FED, len(keys), *keys, *arguments))

    def close(self, group_ids: Iterable[str], cursor: int) -> None:
        """Feeder, after the end: these of the `cursor` fed groups have no fate and are surplus."""
        with self.client.pipeline(transaction=True) as pipe:
            for group_id in group_ids:
                pipe.hsetnx(self.fates_key, group_id, Fate.SURPLUS.value)
            pipe.set(self.cursor_key, cursor)
            pipe.execute()

    def missing(self, group_ids: Iterable[str]) -> list[str]:
        """Of these fed ids, those that neither have a fate nor are outstanding: to be re-fed."""
        ids = list(group_ids)
        with self.client.pipeline(transaction=True) as pipe:
            for group_id in ids:
                pipe.hexists(self.fates_key, group_id)
                pipe.sismember(self.outstanding_key, group_id)
            answers = pipe.execute()
        known = zip(answers[::2], answers[1::2], strict=True)
        return [i for i, (fated, out) in zip(ids, known, strict=True) if not fated and not out]

    # -- the rollout worker -------------------------------------------------------------------

    def is_wanted(self, group_id: str) -> bool:
        """Whether rolling this group out still has a purpose (a redelivered task may not)."""
        with self.client.pipeline(transaction=True) as pipe:
            pipe.hexists(self.fates_key, group_id)
            pipe.sismember(self.appended_key, group_id)
            pipe.get(self.state_key)
            fated, appended, state = pipe.execute()
        return not fated and not appended and state == RunState.RUNNING.value.encode()

    def append(self, group_id: str, payload: bytes) -> bool:
        """Put a scored group on the stream.

        False if it was already there, has its fate, or comes after the end of the run.
        """
        keys = [self.groups_key, self.fates_key, self.appended_key, self.state_key]
        arguments = [group_id, payload, RunState.FINISHED.value]
        return bool(self.client.eval(scripts.APPEND, len(keys), *keys, *arguments))

    def give_up(self, group_id: str, reason: str) -> bool:
        """Dead-letter a group whose rollout failed for good.

        False, and nothing is done, if the group is on the stream or has its fate: somebody else,
        to whom the same task was delivered, has brought it to its end.
        """
        keys = [self.dead_key, self.fates_key, self.appended_key, self.outstanding_key]
        arguments = [group_id, reason, Fate.DEAD.value]
        return bool(self.client.eval(scripts.GIVE_UP, len(keys), *keys, *arguments))

    def bury_task(self, group_id: str, reason: str, task: bytes) -> None:
        """Dead-letter what is no task, as it came.

        With an empty group_id (nobody can tell whose it was) no group is fated.
        """
        letter: dict[str, bytes | str] = {"group_id": group_id, "reason": reason, "task": task}
        with self.client.pipeline(transaction=True) as pipe:
            pipe.xadd(self.dead_key, letter)  # pyright: ignore[reportArgumentType]
            self._settle(pipe, group_id, Fate.DEAD, None)
            pipe.execute()

    # -- the trainer --------------------------------------------------------------------------

    def read_pending(self) -> list[StreamEntry]:
        """Entries delivered before but not settled: a restarted trainer drains these first."""
        return self._read("0", count=10_000, block_ms=None)

    def read_new(self, count: int, block_ms: int) -> list[StreamEntry]:
        """Up to `count` new entries, waiting up to `block_ms`."""
        return self._read(">", count=count, block_ms=block_ms)

    def _read(self, start: str, *, count: int, block_ms: int | None) -> list[StreamEntry]:
        answer = self.client.xreadgroup(
            CONSUMER_GROUP, CONSUMER, {self.groups_key: start}, count=count, block=block_ms
        )
        streams = answer.values() if isinstance(answer, dict) else [s[1] for s in answer or []]
        entries: list[StreamEntry] = []
        for batch in streams:
            rows = batch[0] if batch and isinstance(batch[0], list) else batch
            for entry_id, fields in cast("Sequence[tuple[bytes, dict[bytes, bytes]]]", rows):
                group_id = _text_or_nothing(fields.get(b"group_id", b""))
                entries.append(StreamEntry(entry_id.decode(), group_id, fields.get(b"group", b"")))
        return entries

    def bury(self, entry: StreamEntry, reason: str) -> None:
        """Dead-letter an entry that cannot be trained."""
        letter: dict[str, bytes | str] = {
            "group_id": entry.group_id,
            "reason": reason,
            "group": entry.payload,
        }
        with self.client.pipeline(transaction=True) as pipe:
            pipe.xadd(self.dead_key, letter)  # pyright: ignore[reportArgumentType]
            self._settle(pipe, entry.group_id, Fate.DEAD, entry.entry_id)
            pipe.execute()

    def settle(self, fated: Iterable[tuple[StreamEntry, Fate]]) -> None:
        """Acknowledge, delete and fate these entries in one MULTI (checkpoint comes before)."""
        with self.client.pipeline(transaction=True) as pipe:
            for entry, fate in fated:
                self._settle(pipe, entry.group_id, fate, entry.entry_id)
            pipe.execute()

    def _settle(self, pipe: Pipeline, group_id: str, fate: Fate, entry_id: str | None) -> None:
        if entry_id is not None:
            pipe.xack(self.groups_key, CONSUMER_GROUP, entry_id)
            pipe.xdel(self.groups_key, entry_id)
        if not group_id:
            return
        self._put_fate(pipe, group_id, fate)
        pipe.srem(self.appended_key, group_id)
        pipe.srem(self.outstanding_key, group_id)

    def _put_fate(self, pipe: Pipeline, group_id: str, fate: Fate) -> None:
        """After an emptied Redis a group that the trainer holds is fed again, and may die then."""
        put = pipe.hset if fate is Fate.TRAINED else pipe.hsetnx
        put(self.fates_key, group_id, fate.value)

    def fates(self) -> dict[str, Fate]:
        """Fate by group id."""
        rows = cast("dict[bytes, bytes]", self.client.hgetall(self.fates_key))
        return {group_id.decode(): Fate(fate.decode()) for group_id, fate in rows.items()}

    def length(self) -> int:
        """Groups waiting on the stream (read but unsettled ones included)."""
        return self.client.xlen(self.groups_key)

    def lag(self) -> int:
        """Groups on the stream that the trainer has not read; 0 after Redis was emptied."""
        try:
            groups = cast("list[dict[str, object]]", self.client.xinfo_groups(self.groups_key))
        except redis.ResponseError as error:
            if "no such key" not in str(error):
                raise
            return 0
        lag = next((g["lag"] for g in groups if g["name"] == CONSUMER_GROUP.encode()), None)
        return int(cast("int | None", lag) or 0)

    def oldest_age_s(self) -> float:
        """How long the oldest group has been on the stream, by Redis's clock; 0 without one."""
        first = cast("list[tuple[bytes, object]]", self.client.xrange(self.groups_key, count=1))
        if not first:
            return 0.0
        seconds, microseconds = self.client.time()
        appended_s = int(first[0][0].split(b"-")[0]) / 1e3
        return max(0.0, seconds + microseconds / 1e6 - appended_s)
