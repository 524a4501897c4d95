"""The run's state in Redis: which groups were fed, which came back, and what became of each.

At-least-once delivery, exactly-once effect (DESIGN.md, decision 6). For a run, at all times,

    cursor = |fates| + |outstanding|      and      appended ⊆ outstanding

where *cursor* counts the groups the feeder has handed out, *outstanding* holds the ids without a
fate, *appended* those of them whose group is on the stream. Every step that moves an id is one
MULTI or one script, so a process killed between two commands changes nothing. Appending is
idempotent: a group that is already on the stream, or already has its fate, is not added again.

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


_APPEND = """
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then return 0 end
if redis.call('SADD', KEYS[3], ARGV[1]) == 0 then return 0 end
redis.call('XADD', KEYS[1], '*', 'group_id', ARGV[1], 'group', ARGV[2])
return 1
"""

_MARK_FED = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if redis.call('HEXISTS', KEYS[2], ARGV[2]) == 0 then redis.call('SADD', KEYS[3], ARGV[2]) end
local cursor = tonumber(redis.call('GET', KEYS[4]) or '0')
redis.call('SET', KEYS[4], math.max(cursor, tonumber(ARGV[3])))
return 1
"""

_RAISE_CURSOR = """
local cursor = tonumber(redis.call('GET', KEYS[1]) or '0')
redis.call('SET', KEYS[1], math.max(cursor, tonumber(ARGV[1])))
"""

_FINISH = """
local left = redis.call('SMEMBERS', KEYS[1])
for _, group_id in ipairs(left) do redis.call('HSETNX', KEYS[2], group_id, ARGV[1]) end
redis.call('DEL', KEYS[1], KEYS[3], KEYS[4])
redis.call('SET', KEYS[5], ARGV[2])
return #left
"""

_GIVE_UP = """
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then return 0 end
if redis.call('SISMEMBER', KEYS[3], ARGV[1]) == 1 then return 0 end
redis.call('XADD', KEYS[1], '*', 'group_id', ARGV[1], 'reason', ARGV[2])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
redis.call('SREM', KEYS[4], ARGV[1])
return 1
"""


def connect_redis(url: str) -> "redis.Redis":
    """A client for `RunStream` that waits out a restart of Redis (about a minute)."""
    return redis.Redis.from_url(
        url,
        retry=Retry(ExponentialBackoff(cap=5, base=0.1), 16),
        retry_on_error=[redis.ConnectionError, redis.TimeoutError],
    )


def check_flow(
    *,
    groups_per_step: int,
    checkpoint_every: int,
    publish_every: int,
    max_off_policy_steps: int,
    max_outstanding: int,
) -> None:
    """Check the flow settings of feeder and trainer against each other (DESIGN.md, decision 8).

    groups_per_step·checkpoint_every ≤ max_outstanding, because nothing is fated before the
    checkpoint that holds it, and max_outstanding ≤ groups_per_step·(max_off_policy_steps −
    publish_every + 1), or groups would grow stale in the queue. Raises `ValueError`.
    """
    least = groups_per_step * checkpoint_every
    most = groups_per_step * (max_off_policy_steps - publish_every + 1)
    if not least <= max_outstanding <= most:
        raise ValueError(
            f"max_outstanding is {max_outstanding}, but must lie between {least} "
            f"(groups_per_step {groups_per_step} · checkpoint_every {checkpoint_every}) and {most} "
            f"(groups_per_step · (max_off_policy_steps {max_off_policy_steps} − publish_every "
            f"{publish_every} + 1))"
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

    # -- the run ------------------------------------------------------------------------------

    def state(self) -> RunState | None:
        """None before the trainer opened the run, or after Redis was emptied."""
        value = cast("bytes | None", self.client.get(self.state_key))
        return None if value is None else RunState(value.decode())

    def open(self, fates: Mapping[str, Fate], cursor: int) -> None:
        """Trainer, at start and after an emptied Redis: make its checkpoint's state true here.

        Idempotent: existing fates win, the cursor never moves back.
        """
        with self.client.pipeline(transaction=True) as pipe:
            for group_id, fate in fates.items():
                pipe.hsetnx(self.fates_key, group_id, fate.value)
                pipe.srem(self.outstanding_key, group_id)
            pipe.eval(_RAISE_CURSOR, 1, self.cursor_key, cursor)
            pipe.set(self.state_key, RunState.RUNNING.value)
            pipe.execute()
        try:
            self.client.xgroup_create(self.groups_key, CONSUMER_GROUP, id="0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def finish(self) -> int:
        """Trainer, at the end: every group without a fate is surplus; returns how many."""
        keys = [
            *(self.outstanding_key, self.fates_key, self.appended_key),
            *(self.groups_key, self.state_key),
        ]
        fate, state = Fate.SURPLUS.value, RunState.FINISHED.value
        return int(cast("int", self.client.eval(_FINISH, len(keys), *keys, fate, state)))

    # -- the feeder ---------------------------------------------------------------------------

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
        return bool(self.client.eval(_MARK_FED, len(keys), *keys, *arguments))

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
        """Put a scored group on the stream; False if it was already there or has its fate."""
        keys = [self.groups_key, self.fates_key, self.appended_key]
        return bool(self.client.eval(_APPEND, len(keys), *keys, group_id, payload))

    def give_up(self, group_id: str, reason: str) -> bool:
        """Dead-letter a group whose rollout failed for good.

        False, and nothing is done, if the group is on the stream or has its fate: somebody else,
        to whom the same task was delivered, has brought it to its end.
        """
        keys = [self.dead_key, self.fates_key, self.appended_key, self.outstanding_key]
        arguments = [group_id, reason, Fate.DEAD.value]
        return bool(self.client.eval(_GIVE_UP, len(keys), *keys, *arguments))

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
        pipe.hsetnx(self.fates_key, group_id, fate.value)
        pipe.srem(self.appended_key, group_id)
        pipe.srem(self.outstanding_key, group_id)

    def fates(self) -> dict[str, Fate]:
        """Fate by group id."""
        rows = cast("dict[bytes, bytes]", self.client.hgetall(self.fates_key))
        return {group_id.decode(): Fate(fate.decode()) for group_id, fate in rows.items()}

    def length(self) -> int:
        """Groups waiting on the stream (read but unsettled ones included)."""
        return self.client.xlen(self.groups_key)
