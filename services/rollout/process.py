"""The worker process put together: logs, probes, the loop, the clients, and Celery in front."""

import asyncio
from collections.abc import Mapping

from prometheus_client import CollectorRegistry

from services.rollout.metrics import RolloutMetrics
from services.rollout.settings import RolloutSettings
from services.rollout.task import queue_of
from services.rollout.worker import Deliveries, RolloutLoop, work
from shared.clients.ready import some_replica_answers
from shared.service.app import ReadyCheck
from shared.service.logs import configure_logs
from shared.service.serve import probe_server
from shared.stream import RunStream, connect_redis
from shared.work_queue.renewal import Renewal
from shared.work_queue.worker import quieten_celery


def run_worker(settings: RolloutSettings) -> int:
    """Work until SIGTERM or SIGINT; the exit status."""
    configure_logs("rollout", settings.log_level)
    quieten_celery()
    registry = CollectorRegistry()
    metrics = RolloutMetrics(registry)
    stream = RunStream(connect_redis(settings.redis_url), settings.run)
    queue = queue_of(settings.run)
    app = queue.celery(settings.redis_url, visibility_timeout_s=settings.visibility_timeout_s)
    with (
        stream.client,
        RolloutLoop(settings, metrics) as loop,
        Renewal(stream.client, queue, settings.visibility_timeout_s) as renewal,
        probe_server(
            "rollout",
            settings.probe_host,
            settings.probe_port,
            registry,
            ready_checks(settings, stream),
        ),
    ):
        return work(app, settings, loop, Deliveries(settings, stream, loop, metrics), renewal)


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
