"""The clinic's worker: one task is one item of a job, asked for until it has ended.

A worker knows nothing of a case and keeps nothing: it asks the clinic to work an item, again and
again, and acknowledges the message when the clinic says that the item is over. So it may be killed
at any moment: the message is delivered again, the clinic meanwhile goes on. What it bounds is how
many items are worked on together. While the clinic is away it waits; one that says it does not
know the item, or that the request is wrong, is not asked again.
"""

import asyncio
import logging
import threading
from collections.abc import Mapping

import httpx
import redis
from celery.exceptions import Reject
from prometheus_client import CollectorRegistry, Counter, Gauge

from services.clinic.job_documents import ItemName
from services.clinic.job_queue import QUEUE, TASK_NAME, decode_item
from services.clinic.worker_settings import ClinicWorkerSettings
from shared.clients.ready import some_replica_answers
from shared.errors import PayloadError
from shared.service.app import ReadyCheck
from shared.service.logs import configure_logs
from shared.service.serve import probe_server
from shared.work_queue.renewal import Renewal
from shared.work_queue.worker import quieten_celery, take_tasks

logger = logging.getLogger(__name__)

WAIT_S = 2
"""How long one request waits for the end of an item; a worker that stops waits as long."""
_TIMEOUT = httpx.Timeout(30.0, connect=5.0)
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0


class WorkerMetrics:
    """What a worker counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.deliveries = Counter(
            "medvr_clinic_worker_deliveries",
            "Deliveries by what became of them: over, unknown, refused, rejected or requeued.",
            ["outcome"],
            registry=registry,
        )
        self.running = Gauge(
            "medvr_clinic_worker_running_items", "Items being worked on.", registry=registry
        )


class ItemDeliveries:
    """What is done with a delivered message; called from Celery's threads."""

    def __init__(self, clinic: httpx.Client, metrics: WorkerMetrics) -> None:
        self._clinic = clinic
        self._metrics = metrics
        self._stop = threading.Event()

    def interrupt(self) -> None:
        """Give back what is in hand, and take nothing more."""
        self._stop.set()

    def handle(self, payload: object, _: str) -> None:
        """Bring one delivery to its end; raises only `Reject` (to be delivered again)."""
        try:
            name = decode_item(payload)
        except PayloadError as error:
            logger.error("a task was rejected: %s", error)
            self._metrics.deliveries.labels("rejected").inc()
            return
        with self._metrics.running.track_inprogress():
            outcome = self._worked(name)
        self._metrics.deliveries.labels(outcome).inc()
        if outcome == "requeued":
            raise Reject("the worker stops", requeue=True)

    def set_aside(self, _: bytes, __: str, ___: str) -> None:
        """What Celery could make no task of is dropped: an item without a message is sent again."""
        self._metrics.deliveries.labels("rejected").inc()

    def _worked(self, name: ItemName) -> str:
        """Ask for the item until it is over; what became of the delivery."""
        path = f"/v1/jobs/{name.job_id}/items/{name.number}/work"
        extra = {"job_id": name.job_id, "item": name.number}
        pause_s = _FIRST_PAUSE_S
        while not self._stop.is_set():
            try:
                response = self._clinic.post(path, headers={"prefer": f"wait={WAIT_S}"})
                status = response.status_code
            except httpx.TransportError as error:
                logger.info("the clinic does not answer: %s", type(error).__name__, extra=extra)
                status = 503
            if status == 200:
                return "over"
            if status == 202:
                pause_s = _FIRST_PAUSE_S
                continue
            if status < 500 and status not in (408, 429):
                logger.error("the clinic refuses an item with %d", status, extra=extra)
                return "unknown" if status == 404 else "refused"
            self._stop.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return "requeued"


def ready_checks(settings: ClinicWorkerSettings, client: redis.Redis) -> Mapping[str, ReadyCheck]:
    """Redis and the clinic answer."""

    async def redis_answers() -> None:
        await asyncio.to_thread(client.ping)

    return {
        "redis": redis_answers,
        "clinic": some_replica_answers(settings.clinic_url, "/health"),
    }


def run_worker(settings: ClinicWorkerSettings) -> int:
    """Work until SIGTERM or SIGINT; the exit status."""
    configure_logs("clinic-worker", settings.log_level)
    quieten_celery()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    registry = CollectorRegistry()
    app = QUEUE.celery(settings.redis_url, visibility_timeout_s=settings.visibility_timeout_s)
    with (
        redis.Redis.from_url(settings.redis_url) as client,
        httpx.Client(base_url=settings.clinic_url, timeout=_TIMEOUT, trust_env=False) as clinic,
        Renewal(client, QUEUE, settings.visibility_timeout_s) as renewal,
        probe_server(
            "clinic-worker",
            settings.probe_host,
            settings.probe_port,
            registry,
            ready_checks(settings, client),
        ),
    ):
        deliveries = ItemDeliveries(clinic, WorkerMetrics(registry))
        return take_tasks(
            app,
            TASK_NAME,
            deliveries.handle,
            deliveries.set_aside,
            renewal,
            on_stop=deliveries.interrupt,
            concurrency=settings.concurrency,
            log_level=settings.log_level,
        )
