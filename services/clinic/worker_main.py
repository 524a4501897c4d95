"""`medvr clinic-worker`: settings, imports, run."""

import sys

from services.clinic.worker_settings import ClinicWorkerSettings


def main(argv: list[str]) -> None:
    """Work until a signal."""
    settings = ClinicWorkerSettings.load(argv)
    from services.clinic.worker import run_worker
    from shared.service.process import plain_errors

    with plain_errors():
        raise SystemExit(run_worker(settings))


if __name__ == "__main__":
    main(sys.argv[1:])
