"""The queue between the clinic and its workers: which items are to be worked on, and no more.

A message names a job and an item by number. What is asked stays in the clinic's database, which
alone says what there is to do: a message that is lost is sent again, one too many does nothing.
"""

import logging
from collections.abc import Collection, Iterable

import msgspec
import redis
from celery.exceptions import OperationalError

from services.clinic.job_documents import ItemName
from shared.errors import PayloadError
from shared.work_queue.queue import WorkQueue

logger = logging.getLogger(__name__)

QUEUE = WorkQueue(name="clinic.jobs", key_prefix="medvr:clinic:celery:")
TASK_NAME = "medvr.clinic.item"
MAX_PAYLOAD_CHARS = 1000

_TIMEOUT_S = 5.0
_decoder = msgspec.json.Decoder(ItemName)


def encode_item(name: ItemName) -> str:
    """The payload as it travels."""
    return msgspec.json.encode(name).decode()


def decode_item(payload: object) -> ItemName:
    """A payload off the queue. Raises `PayloadError`, which quotes nothing of it."""
    if not isinstance(payload, str) or len(payload) > MAX_PAYLOAD_CHARS:
        raise PayloadError("the payload is no short JSON string")
    try:
        return _decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise PayloadError(f"the payload names no item ({type(error).__name__})") from error


def task_id_of(name: ItemName) -> str:
    """What Celery calls the task of an item."""
    return f"{name.job_id}:{name.number}"


class QueueAway(Exception):
    """Redis does not answer."""


class ItemSender:
    """The clinic's end of the queue; safe to use from several threads."""

    def __init__(self, redis_url: str) -> None:
        self._redis = redis.Redis.from_url(
            redis_url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S
        )
        self._app = QUEUE.celery(redis_url, publish_retries=1)

    def close(self) -> None:
        """Close all connections."""
        self._app.close()
        self._redis.close()

    def send(self, names: Iterable[ItemName]) -> None:
        """Queue items. Raises `QueueAway`; some of them may be queued then."""
        try:
            for name in names:
                task_id = task_id_of(name)
                self._app.send_task(
                    TASK_NAME, args=[encode_item(name)], task_id=task_id, argsrepr=task_id
                )
        except (OperationalError, redis.RedisError) as error:
            raise QueueAway(type(error).__name__) from error

    def missing(self, names: Collection[ItemName]) -> list[ItemName]:
        """Those of the items that no message is on the way for. Raises `QueueAway`."""
        try:
            known = QUEUE.ids_on_the_way(self._redis)
        except redis.RedisError as error:
            raise QueueAway(type(error).__name__) from error
        return [name for name in names if task_id_of(name) not in known]
