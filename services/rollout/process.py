"""The worker process put together: logs, probes, the loop, the clients, and Celery in front."""

import asyncio
import logging
from collections.abc import Mapping

from prometheus_client import CollectorRegistry

from services.rollout.metrics import RolloutMetrics
from services.rollout.renewal import Renewal
from services.rollout.settings import RolloutSettings
from services.rollout.task import create_celery
from services.rollout.worker import Deliveries, RolloutLoop, work
from shared.clients.ready import some_replica_answers
from shared.service.app import ReadyCheck
from shared.service.logs import configure_logs
from shared.service.serve import probe_server
from shared.stream import RunStream, connect_redis


def run_worker(settings: RolloutSettings) -> int:
    """Work until SIGTERM or SIGINT; the exit status."""
    configure_logs("rollout", settings.log_level)
    _silence_celery()
    registry = CollectorRegistry()
    metrics = RolloutMetrics(registry)
    stream = RunStream(connect_redis(settings.redis_url), settings.run)
    app = create_celery(
        settings.run, settings.redis_url, visibility_timeout_s=settings.visibility_timeout_s
    )
    with (
        stream.client,
        RolloutLoop(settings, metrics) as loop,
        Renewal(stream.client, settings.run, settings.visibility_timeout_s) as renewal,
        probe_server(
            "rollout",
            settings.probe_host,
            settings.probe_port,
            registry,
            ready_checks(settings, stream),
        ),
    ):
        return work(app, settings, loop, Deliveries(settings, stream, loop, metrics), renewal)


def _silence_celery() -> None:
    """Celery logs the arguments of tasks, and those hold question and answer."""
    logging.captureWarnings(True)
    for name in ("celery", "kombu"):
        logging.getLogger(name).setLevel(max(logging.INFO, logging.getLogger().level))
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.ERROR)


def ready_checks(settings: RolloutSettings, stream: RunStream) -> Mapping[str, ReadyCheck]:
    """Redis and the three services answer."""

    async def redis_answers() -> None:
        await asyncio.to_thread(stream.client.ping)

    return {
        "redis": redis_answers,
        "policy": some_replica_answers(settings.policy_url, "/health"),
        "zoom": some_replica_answers(settings.zoom_url, "/health"),
        "cca": some_replica_answers(settings.cca_url, "/health"),
    }
