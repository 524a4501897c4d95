"""`medvr rollout`: the Celery worker."""

import sys

from services.rollout.settings import RolloutSettings


def main(argv: list[str]) -> None:
    """Settings, imports, run."""
    settings = RolloutSettings.load(argv)
    from services.rollout.process import run_worker
    from shared.service.process import plain_errors

    with plain_errors():
        raise SystemExit(run_worker(settings))


if __name__ == "__main__":
    main(sys.argv[1:])
