"""The Celery task between feeder and worker: its queue and its payload.

A payload is JSON and is validated where it arrives. Every key that Celery keeps in Redis carries
the run's name, so what an old run left behind never reaches a new one. The trajectory group that
comes of it goes to the run's stream.
"""

import re

import msgspec
from celery import Celery

from shared.errors import PayloadError
from shared.problem import Problem
from shared.trajectory import make_group_id
from shared.work_queue.queue import WorkQueue

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


def queue_of(run: str) -> WorkQueue:
    """Where the groups of a run wait."""
    return WorkQueue(name=f"rollout.{run}", key_prefix=f"medvr:run:{run}:celery:")


def send_task(app: Celery, task: RolloutTask) -> None:
    """Queue a task; in Celery's own logs it is called by its group id, never by its content."""
    app.send_task(
        TASK_NAME, args=[encode_task(task)], task_id=task.group_id, argsrepr=task.group_id
    )
