"""`medvr trainer`: settings, imports, run; several ranks by `torchrun … -m -- services trainer`."""

import asyncio
import logging
import os
import signal
import sys
import threading
from types import FrameType

from services.trainer.flow import check_flow
from services.trainer.settings import DryRunSettings, TrainerSettings
from shared.errors import MedvrError
from shared.service.logs import configure_logs
from shared.service.settings import refuse

logger = logging.getLogger(__name__)

MAX_PORT = 65_535


def main(argv: list[str]) -> None:
    """Train until `max_steps` or a signal; exits with 1 and a logged reason if it cannot."""
    settings = (DryRunSettings if "--dry-run" in argv else TrainerSettings).load(argv)
    check(settings)
    if settings.dry_run:
        rehearse(DryRunSettings.load(argv), argv)
        return
    configure_logs("trainer", settings.log_level)
    try:
        run_trainer(settings)
    except (MedvrError, ValueError, OSError) as error:
        logger.error("the trainer ends: %s", error)
        raise SystemExit(1) from error


def check(settings: TrainerSettings) -> None:
    """Settings against each other; exits with 2 and a plain message if they cannot be."""
    try:
        check_flow(
            groups_per_step=settings.groups_per_step,
            checkpoint_every=settings.checkpoint_every,
            publish_every=settings.publish_every,
            max_off_policy_steps=settings.max_off_policy_steps,
            max_outstanding=settings.max_outstanding,
        )
    except ValueError as error:
        refuse(str(error))


def rehearse(settings: DryRunSettings, argv: list[str]) -> None:
    """Print what the run would cost; exits with 2 and a plain message if there is no model here."""
    from services.trainer.dry_run.report import report

    try:
        sys.stdout.write(report(settings, argv))
    except MedvrError as error:
        refuse(str(error))


def run_trainer(settings: TrainerSettings) -> None:
    """This process of a trainer with its probes.

    SIGTERM and SIGINT end it after the step, or abandon that; ranks that do not lead leave it to
    the one that does.
    """
    from prometheus_client import CollectorRegistry
    from transformers.utils import logging as transformers_logging

    from services.trainer.assembly import build_follower, build_trainer, connect, locked_run
    from services.trainer.follow import follow
    from services.trainer.world import Order, open_world
    from shared.service.serve import probe_server

    transformers_logging.disable_progress_bar()
    stop = threading.Event()

    def request_stop(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, request_stop)
    registry = CollectorRegistry()
    client = connect(settings.redis_url)

    async def redis_answers() -> None:
        await asyncio.to_thread(client.ping)

    port = settings.probe_port + int(os.environ.get("LOCAL_RANK", "0"))
    if port > MAX_PORT:
        raise ValueError(f"probe_port {settings.probe_port} leaves no port for each rank of a host")
    asks_redis = os.environ.get("RANK", "0") == "0"
    dependencies = {"redis": redis_answers} if asks_redis else {}
    probes = probe_server("trainer", settings.probe_host, port, registry, dependencies)
    with probes, open_world(settings.device, always_sharded=settings.cpu_offload) as world:
        if world.leads:
            with locked_run(settings.run_folder):
                build_trainer(settings, client, registry, stop, world).run()
                world.lead(Order.END)
        else:
            follow(world, build_follower(settings, world))


if __name__ == "__main__":
    main(sys.argv[1:])
