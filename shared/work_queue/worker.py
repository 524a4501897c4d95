# pyright: basic
"""A Celery worker for one kind of task: threads that take deliveries until a signal.

What becomes of a delivery is its handler's to say: it returns, and the delivery is acknowledged,
or raises `celery.exceptions.Reject`. While it is at work the delivery is renewed.
"""

import logging
from collections.abc import Callable

from celery import Celery, Task, signals

from shared.work_queue.consumer import SetAside, guarded_consumer
from shared.work_queue.renewal import Renewal

Handle = Callable[[object, str], None]
"""Brings a delivery to its end: its payload, and the id its task was sent with."""


def quieten_celery() -> None:
    """Celery logs the arguments of tasks, which are nobody's to read."""
    logging.captureWarnings(True)
    for name in ("celery", "kombu"):
        logging.getLogger(name).setLevel(max(logging.INFO, logging.getLogger().level))
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.ERROR)


def take_tasks(
    app: Celery,
    task_name: str,
    handle: Handle,
    set_aside: SetAside,
    renewal: Renewal,
    *,
    on_stop: Callable[[], None],
    concurrency: int,
    log_level: str,
) -> int:
    """Take tasks until SIGTERM or SIGINT, and let `on_stop` cut them short; the exit status."""

    def deliver(task: Task, *args: object, **kwargs: object) -> None:
        payload = args[0] if len(args) == 1 and not kwargs else (args, kwargs)
        with renewal.held(task.request.properties["delivery_tag"]):
            handle(payload, str(task.request.id or ""))

    app.task(deliver, name=task_name, bind=True)

    def on_shutdown(**_: object) -> None:
        on_stop()

    def keep_logs(**_: object) -> None:
        """A receiver of this signal keeps Celery from setting up logs of its own."""

    signals.worker_shutting_down.connect(on_shutdown, weak=False)
    signals.setup_logging.connect(keep_logs, weak=False)
    worker = app.Worker(
        pool_cls="threads",
        consumer_cls=guarded_consumer(set_aside),
        concurrency=concurrency,
        loglevel=log_level,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)
