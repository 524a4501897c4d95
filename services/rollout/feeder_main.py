"""`medvr feeder`: settings, imports, run."""

import signal
import sys
import threading

from services.rollout.settings import FeederSettings


def main(argv: list[str]) -> None:
    """Feed until the run is finished or a signal."""
    settings = FeederSettings.load(argv)
    from redis import RedisError

    from services.rollout.feeder import run_feeder
    from shared.service.logs import configure_logs
    from shared.service.process import plain_errors

    configure_logs("feeder", settings.log_level)
    stop = threading.Event()

    def end(*_: object) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    with plain_errors(RedisError):
        run_feeder(settings, stop)


if __name__ == "__main__":
    main(sys.argv[1:])
