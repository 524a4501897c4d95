# pyright: basic
"""What Celery's consumer does with a message that is no task: here it is set aside, not dropped.

Celery writes such a message into its log, contents and all, and acknowledges it; one whose body
cannot be read even ends the worker, goes back to the queue, and ends the next one.
"""

import logging
from collections.abc import Callable
from typing import Any

from celery.worker.consumer import Consumer

logger = logging.getLogger(__name__)

SetAside = Callable[[bytes, str, str], None]
"""Keeps a message's body, the id it came with and the reason why it is no task."""


def guarded_consumer(set_aside: SetAside) -> type[Consumer]:
    """A consumer class, for `app.Worker(consumer_cls=…)`."""

    class GuardedConsumer(Consumer):
        def on_decode_error(self, message: Any, exc: Exception) -> None:
            self._refuse(message, f"the message cannot be decoded ({type(exc).__name__})")

        def on_unknown_message(self, body: Any, message: Any) -> None:  # noqa: ARG002
            self._refuse(message, "the message names no task")

        def on_unknown_task(self, body: Any, message: Any, exc: Any) -> None:  # noqa: ARG002
            self._refuse(message, "the message names a task that is not ours")

        def on_invalid_task(self, body: Any, message: Any, exc: Any) -> None:  # noqa: ARG002
            self._refuse(message, f"the message is no valid task ({type(exc).__name__})")

        def create_task_handler(self, *arguments: Any, **options: Any) -> Callable[[Any], None]:
            handle = super().create_task_handler(*arguments, **options)

            def guarded(message: Any) -> None:
                try:
                    handle(message)
                except Exception as error:  # noqa: BLE001 - whatever it is, the worker goes on
                    self._refuse(message, f"the message cannot be read ({type(error).__name__})")

            return guarded

        def _refuse(self, message: Any, reason: str) -> None:
            logger.error("a task was rejected: %s", reason)
            body = message.body or b""
            raw = body if isinstance(body, bytes) else str(body).encode(errors="backslashreplace")
            set_aside(raw, str((message.headers or {}).get("id") or ""), reason)
            message.ack_log_error(logger, self.connection_errors)

    return GuardedConsumer
