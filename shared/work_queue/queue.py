"""A Celery queue in Redis: its keys, the app that both ends use, and what is on the way in it.

A task is acknowledged when it is over, so a worker that dies leaves it unacknowledged and it is
delivered again (`renewal`). There is no result backend: what a task makes goes elsewhere. Every
key that Celery keeps carries the queue's prefix, so that queues never meet.
"""

from typing import cast

import msgspec
import redis
from celery import Celery


class _Headers(msgspec.Struct, frozen=True):
    id: str


class _Message(msgspec.Struct, frozen=True):
    """The part of Celery's message that says which task it is."""

    headers: _Headers


class _HeldMessage(msgspec.Struct, frozen=True, array_like=True):
    """A message in a worker's hands; its exchange and routing key follow."""

    message: _Message


_waiting_decoder = msgspec.json.Decoder(_Message)
_held_decoder = msgspec.json.Decoder(_HeldMessage)


def _id_in(
    text: bytes, decoder: msgspec.json.Decoder[_Message] | msgspec.json.Decoder[_HeldMessage]
) -> str:
    """The id of a message's task; empty if it is no task, which a worker will set aside."""
    try:
        found = decoder.decode(text)
    except msgspec.MsgspecError:
        return ""
    return (found.message if isinstance(found, _HeldMessage) else found).headers.id


class WorkQueue(msgspec.Struct, frozen=True):
    """Where one kind of work waits."""

    name: str
    key_prefix: str
    """Of every key that Celery keeps for it."""

    @property
    def list_key(self) -> str:
        """The Redis list that holds the waiting tasks."""
        return self.key_prefix + self.name

    @property
    def unacked_key(self) -> str:
        """The hash of the deliveries that are not acknowledged."""
        return self.key_prefix + "unacked"

    @property
    def unacked_index_key(self) -> str:
        """The sorted set of those deliveries, by their time."""
        return self.key_prefix + "unacked_index"

    def ids_on_the_way(self, client: redis.Redis) -> set[str]:
        """Ids of the tasks that wait or are noted as in a worker's hands.

        A task that a worker has just taken is in neither list for a moment.
        """
        with client.pipeline(transaction=True) as pipe:
            pipe.lrange(self.list_key, 0, -1)
            pipe.hvals(self.unacked_key)
            waiting, held = cast("tuple[list[bytes], list[bytes]]", pipe.execute())
        ids = {_id_in(text, _waiting_decoder) for text in waiting}
        return ids | {_id_in(text, _held_decoder) for text in held}

    def celery(
        self, redis_url: str, *, visibility_timeout_s: float = 30, publish_retries: int = 30
    ) -> Celery:
        """A Celery app for this queue.

        An unacknowledged task is delivered again after `visibility_timeout_s`, which concerns
        workers only (living ones renew it). A task that cannot be sent is tried again so often.
        """
        app = Celery("medvr", broker=redis_url, set_as_current=False)
        app.conf.update(
            task_default_queue=self.name,
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
                "max_retries": publish_retries,
                "interval_start": 0.1,
                "interval_step": 0.5,
                "interval_max": 5,
            },
            broker_connection_retry_on_startup=True,
            broker_connection_max_retries=None,
            broker_transport_options={
                "global_keyprefix": self.key_prefix,
                "visibility_timeout": visibility_timeout_s,
                "unacked_restore_interval": max(1.0, min(10.0, visibility_timeout_s / 4)),
                "unacked_restore_throttle": 1,
                "unacked_mutex_expire": 30,
            },
        )
        return app
