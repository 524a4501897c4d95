"""The queue: what is no rollout task becomes a dead letter, and the worker rolls on.

One worker takes all rows; after each of them it must still roll out a problem that is in order.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
import redis
from celery import Celery

from services.rollout.task import (
    MAX_TASK_BYTES,
    TASK_NAME,
    RolloutTask,
    encode_task,
    queue_of,
    send_task,
)
from shared.stream import Fate
from shared.trajectory import make_group_id
from tests.rollout.company import RUN, Company, Process, gather_company, until

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Spoil = Callable[[str], Arguments]
"""Makes a good payload into the arguments that are sent."""


def instead(*arguments: Any, **keywords: Any) -> Spoil:
    return lambda _: (arguments, keywords)


def replaced(old: str, new: str) -> Spoil:
    def spoil(payload: str) -> Arguments:
        assert old in payload
        return (payload.replace(old, new, 1),), {}

    return spoil


def with_problem(**members: object) -> Spoil:
    def spoil(payload: str) -> Arguments:
        task = json.loads(payload)
        return (json.dumps({**task, "problem": {**task["problem"], **members}}),), {}

    return spoil


NO_PAYLOAD = "not a rollout payload"
CASES: dict[str, tuple[Spoil, str]] = {
    "a number": (instead(17), "a rollout payload is a JSON string, not int"),
    "no argument": (instead(), "a rollout payload is a JSON string, not tuple"),
    "two arguments": (instead("a", "b"), "a rollout payload is a JSON string, not tuple"),
    "an argument with a name": (instead(payload="{}"), "a JSON string, not tuple"),
    "an empty text": (instead(""), f"{NO_PAYLOAD}: Input data was truncated"),
    "a text": (instead("hello"), f"{NO_PAYLOAD}: JSON is malformed"),
    "half a payload": (lambda p: ((p[: len(p) // 2],), {}), f"{NO_PAYLOAD}: Input data was trunc"),
    "half a character": (instead("\ud800"), NO_PAYLOAD),
    "an empty object": (instead("{}"), "missing required field `group_id`"),
    "lists in lists": (instead("[" * 200_000), f"{NO_PAYLOAD}: Expected `object`, got `array`"),
    "a payload over the limit": (
        with_problem(question="x" * MAX_TASK_BYTES),
        f"at most {MAX_TASK_BYTES} are read",
    ),
    "an unknown field": (
        replaced('"question":', '"questoin":"","question":'),
        "unknown field `questoin`",
    ),
    "an unknown field at the top": (
        replaced('"round":', '"rond":0,"round":'),
        "unknown field `rond`",
    ),
    "a NaN": (replaced('"round":', '"round":NaN,"x":'), f"{NO_PAYLOAD}: JSON is malformed"),
    "a round that is a word": (
        replaced('"position":', '"position":"first","x":'),
        "Expected `int`",
    ),
    "a kind of answer that nobody knows": (
        with_problem(answer_kind="essay"),
        "Invalid enum value 'essay'",
    ),
    "a group that is not that of its problem": (
        with_problem(problem_id="other"),
        "is not that of its run, round and problem",
    ),
    "an image that is a path": (with_problem(image="../../etc/passwd"), "image is not a sha256"),
    "no question": (with_problem(question=""), "question and gold answer must not be empty"),
    "no gold answer": (with_problem(gold_answer=""), "question and gold answer must not be empty"),
}


@dataclass
class Line:
    """A worker, its company, and a Celery app that sends it what no feeder would."""

    worker: Process
    company: Company
    app: Celery
    num_tasks: int = 0

    def next_task(self) -> RolloutTask:
        """A good task that was never sent; its group is marked as fed."""
        problem = self.company.problems[0]
        group_id = make_group_id(RUN, self.num_tasks, problem.problem_id)
        task = msgspec.structs.replace(
            self.company.task(0), group_id=group_id, round=self.num_tasks, position=self.num_tasks
        )
        assert self.company.stream.mark_fed(group_id, self.num_tasks)
        self.num_tasks += 1
        return task

    def num_letters(self) -> int:
        return self.company.stream.client.xlen(self.company.stream.dead_key)

    def last_letter(self) -> dict[bytes, bytes]:
        stream = self.company.stream
        ((_, letter),) = stream.client.xrevrange(stream.dead_key, count=1)
        return letter

    def wait_for(self, condition: Callable[[], object]) -> None:
        def condition_of_a_living_worker() -> object:
            assert self.worker.popen.poll() is None, "the worker ended"
            return condition()

        until(condition_of_a_living_worker)

    def assert_alive(self) -> None:
        """A problem in order comes back as a group, and the queue is empty."""
        task = self.next_task()
        before = self.company.stream.length()
        send_task(self.app, task)
        self.wait_for(lambda: self.company.stream.length() == before + 1)
        client = self.company.stream.client
        self.wait_for(lambda: client.hlen(f"medvr:run:{RUN}:celery:unacked") == 0)
        assert client.llen(queue_of(RUN).list_key) == 0


@pytest.fixture(scope="module")
def line(
    tmp_path_factory: pytest.TempPathFactory, _valkey_server: str, free_port: Callable[[], int]
) -> Iterator[Line]:
    folder = tmp_path_factory.mktemp("bad-tasks")
    with redis.Redis.from_url(_valkey_server) as client:
        client.flushall()
    with (
        gather_company(folder, _valkey_server, free_port) as company,
        queue_of(RUN).celery(_valkey_server) as app,
    ):
        company.stream.open({}, 0)
        worker = company.start_worker(group_size=2)
        worker.wait_ready()
        yield Line(worker, company, app)
        log = company.log.read_text()
    assert "Traceback" not in log
    assert company.problems[0].question not in log


@pytest.mark.parametrize(("spoil", "reason"), CASES.values(), ids=CASES.keys())
def test_what_is_no_task_is_dead_with_its_reason(line: Line, spoil: Spoil, reason: str) -> None:
    task = line.next_task()
    arguments, keywords = spoil(encode_task(task))
    line.app.send_task(TASK_NAME, arguments, keywords, task_id=task.group_id, argsrepr="…")
    fates = line.company.stream.fates
    line.wait_for(lambda: task.group_id in fates())

    assert fates()[task.group_id] is Fate.DEAD
    letter = line.last_letter()
    assert letter[b"group_id"].decode() == task.group_id
    assert reason in letter[b"reason"].decode()
    if arguments and arguments[0] and isinstance(arguments[0], str) and len(arguments) == 1:
        sent = arguments[0].encode(errors="backslashreplace")
        assert letter[b"task"] == sent, "nothing is lost: the letter holds what came"
    line.assert_alive()


def test_a_task_of_another_run_is_a_letter_and_changes_no_fate(line: Line) -> None:
    before, fates = line.num_letters(), line.company.stream.fates()
    send_task(line.app, line.company.task(0, run="another"))
    line.wait_for(lambda: line.num_letters() == before + 1)
    assert b"run 'another', this worker serves 'run'" in line.last_letter()[b"reason"]
    assert line.company.stream.fates() == fates
    line.assert_alive()


def envelope(line: Line) -> dict[str, Any]:
    """A message as Celery puts it into Redis, taken from a queue that nobody reads."""
    line.app.send_task(TASK_NAME, ["{}"], queue="nobody", task_id="stray")
    key = queue_of(RUN).list_key.replace(f"rollout.{RUN}", "nobody")
    return json.loads(line.company.stream.client.lpop(key))


ENVELOPES: dict[str, tuple[dict[str, Any], str]] = {
    "a body that is no base64": ({"body": "!!!"}, "the message cannot be read"),
    "a body that is no task": ({"body": "e30="}, "cannot be"),
    "a pickle": ({"content-type": "application/x-python-serialize"}, "ContentDisallowed"),
    "no header": ({"headers": {}}, "the message names no task"),
    "a task of somebody else's": (
        {"headers": {"task": "os.system", "id": "stray"}},
        "names a task that is not ours",
    ),
}


@pytest.mark.parametrize(("change", "reason"), ENVELOPES.values(), ids=ENVELOPES.keys())
def test_a_message_that_celery_cannot_read_is_a_letter(
    line: Line, change: dict[str, Any], reason: str
) -> None:
    before, fates = line.num_letters(), line.company.stream.fates()
    message = json.dumps(envelope(line) | change)
    line.company.stream.client.lpush(queue_of(RUN).list_key, message)
    line.wait_for(lambda: line.num_letters() == before + 1)

    letter = line.last_letter()
    assert letter[b"group_id"] == b""
    assert reason in letter[b"reason"].decode()
    assert line.company.stream.fates() == fates
    line.assert_alive()
