"""The Celery task between feeder and worker: its queue, its payload, and the app both use.

A payload is JSON and is validated where it arrives. Every key that Celery keeps in Redis carries
the run's name, so what an old run left behind never reaches a new one. There is no result
backend: the trajectory group goes to the run's stream.
"""

import re
from typing import cast

import msgspec
import redis
from celery import Celery

from shared.errors import PayloadError
from shared.problem import Problem
from shared.trajectory import make_group_id

TASK_NAME = "medvr.rollout"

_SHA256 = re.compile(r"[0-9a-f]{64}")


class RolloutTask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One problem to roll out once."""

    group_id: str
    run: str
    round: int
    """Index of the pass over the problem set."""
    position: int
    """How many groups the feeder had handed out before this one."""
    problem: Problem


MAX_TASK_BYTES = 2**20
"""Largest payload that is decoded: a question with its choices has kilobytes."""

_decoder = msgspec.json.Decoder(RolloutTask)


def encode_task(task: RolloutTask) -> str:
    """The payload as it travels."""
    return msgspec.json.encode(task).decode()


def decode_task(payload: object) -> RolloutTask:
    """A payload off the queue, validated. Raises `PayloadError` naming what is wrong."""
    if not isinstance(payload, str):
        raise PayloadError(f"a rollout payload is a JSON string, not {type(payload).__name__}")
    if len(payload) > MAX_TASK_BYTES:
        raise PayloadError(f"{len(payload)} characters; at most {MAX_TASK_BYTES} are read")
    try:
        task = _decoder.decode(payload)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise PayloadError(f"not a rollout payload: {error}") from error
    problem = task.problem
    if task.group_id != make_group_id(task.run, task.round, problem.problem_id):
        raise PayloadError(f"group_id {task.group_id!r} is not that of its run, round and problem")
    if not _SHA256.fullmatch(problem.image):
        raise PayloadError(f"{task.group_id}: image is not a sha256")
    if not problem.question or not problem.gold_answer:
        raise PayloadError(f"{task.group_id}: question and gold answer must not be empty")
    return task


def queue_key(run: str) -> str:
    """The Redis list that holds the waiting tasks of a run."""
    return _key_prefix(run) + _queue(run)


class _Headers(msgspec.Struct, frozen=True):
    id: str


class _Message(msgspec.Struct, frozen=True):
    """The part of Celery's message that says which group it is about."""

    headers: _Headers


class _HeldMessage(msgspec.Struct, frozen=True, array_like=True):
    """A message in a worker's hands; its exchange and routing key follow."""

    message: _Message


_waiting_decoder = msgspec.json.Decoder(_Message)
_held_decoder = msgspec.json.Decoder(_HeldMessage)


def groups_on_the_way(client: redis.Redis, run: str) -> set[str]:
    """Ids of the groups whose task waits in the queue or is noted as in a worker's hands."""
    with client.pipeline(transaction=True) as pipe:
        pipe.lrange(queue_key(run), 0, -1)
        pipe.hvals(_key_prefix(run) + "unacked")
        waiting, held = cast("tuple[list[bytes], list[bytes]]", pipe.execute())
    ids = {_id_in(text, _waiting_decoder) for text in waiting}
    return ids | {_id_in(text, _held_decoder) for text in held}


def _id_in(
    text: bytes, decoder: msgspec.json.Decoder[_Message] | msgspec.json.Decoder[_HeldMessage]
) -> str:
    """The group a message is about; empty if it is no task, which a worker will set aside."""
    try:
        found = decoder.decode(text)
    except msgspec.MsgspecError:
        return ""
    return (found.message if isinstance(found, _HeldMessage) else found).headers.id


def unacked_index_key(run: str) -> str:
    """The sorted set of the deliveries of a run that are not acknowledged, by their time."""
    return _key_prefix(run) + "unacked_index"


def _key_prefix(run: str) -> str:
    return f"medvr:run:{run}:celery:"


def _queue(run: str) -> str:
    return f"rollout.{run}"


def create_celery(run: str, redis_url: str, *, visibility_timeout_s: float = 30) -> Celery:
    """A Celery app for one run's queue.

    A task is acknowledged when it is over, so a worker that dies leaves it unacknowledged; after
    `visibility_timeout_s`, which concerns workers only (living ones renew it), it is delivered
    again.
    """
    app = Celery("medvr", broker=redis_url, set_as_current=False)
    app.conf.update(
        task_default_queue=_queue(run),
        task_create_missing_queues=True,
        task_ignore_result=True,
        task_acks_late=True,
        task_acks_on_failure_or_timeout=True,
        task_reject_on_worker_lost=True,
        task_serializer="json",
        accept_content=["json"],
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        task_publish_retry_policy={
            "max_retries": 30,
            "interval_start": 0.1,
            "interval_step": 0.5,
            "interval_max": 5,
        },
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "global_keyprefix": _key_prefix(run),
            "visibility_timeout": visibility_timeout_s,
            "unacked_restore_interval": max(1.0, min(10.0, visibility_timeout_s / 4)),
            "unacked_restore_throttle": 1,
            "unacked_mutex_expire": 30,
        },
    )
    return app


def send_task(app: Celery, task: RolloutTask) -> None:
    """Queue a task; in Celery's own logs it is called by its group id, never by its content."""
    app.send_task(
        TASK_NAME, args=[encode_task(task)], task_id=task.group_id, argsrepr=task.group_id
    )
