"""`medvr local up | demo | ship | status | down`: the whole system on one machine."""

import sys
from collections.abc import Callable
from typing import NoReturn

from shared.service.logs import configure_logs
from shared.service.process import plain_errors

_USAGE = """usage: medvr local up | demo | ship | status | down [options]

  up      start everything with the shipped trained policy and serve until Ctrl-C
  demo    train a policy on brain phantoms, evaluate it before and after, serve it
  ship    make the policy of a finished demo the one that `up` serves
  status  show the running stack
  down    stop the running stack

`medvr local <command> --help` lists the options. Research use only, not a medical device.
"""

INTERRUPTED = 130


def _up(argv: list[str]) -> int:
    from services.local.settings import UpSettings

    settings = UpSettings.load(argv)
    configure_logs("local", settings.log_level)
    from rich.console import Console

    from services.local.up import up

    try:
        up(settings, Console())
    except KeyboardInterrupt:
        sys.stdout.write("stopped\n")
    return 0


def _demo(argv: list[str]) -> int:
    from services.local.settings import DemoSettings

    settings = DemoSettings.load(argv)
    configure_logs("local", settings.log_level)
    from rich.console import Console

    from services.local.demo import Demo

    demo = Demo(settings, Console())
    try:
        demo.run()
    except KeyboardInterrupt:
        if not demo.is_finished:
            sys.stdout.write(
                "stopped; the same command with --resume continues (make: ARGS=--resume)\n"
            )
            return INTERRUPTED
        sys.stdout.write("stopped\n")
    return 0


def _ship(argv: list[str]) -> int:
    from services.local.settings import ShipSettings

    settings = ShipSettings.load(argv)
    from services.local.ship import ship

    sys.stdout.write(f"{ship(settings)}\n")
    return 0


def _status(argv: list[str]) -> NoReturn:
    from services.local.status_main import main

    main(argv)


def _down(argv: list[str]) -> int:
    from services.local.settings import DownSettings

    settings = DownSettings.load(argv)
    from services.local.state import StackFolder, stop_stack

    sys.stdout.write(stop_stack(StackFolder(settings.folder), settings.timeout_s) + "\n")
    return 0


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "up": _up,
    "demo": _demo,
    "ship": _ship,
    "status": _status,
    "down": _down,
}


def main(argv: list[str]) -> None:
    """Entry point; exits with 1 and a plain message if the stack cannot do what was asked."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        sys.stdout.write(_USAGE)
        raise SystemExit(0)
    if argv[0] not in _COMMANDS:
        sys.stderr.write(f"error: no command {argv[0]!r}\n\n{_USAGE}")
        raise SystemExit(2)
    with plain_errors():
        raise SystemExit(_COMMANDS[argv[0]](argv[1:]))


if __name__ == "__main__":
    main(sys.argv[1:])
