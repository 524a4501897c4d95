"""Real trainers that SIGKILL themselves at chosen points of their cycle; run by the tests.

`python -m tests.trainer.killed_trainer --flags…` reads lines `call|return <function> <n>`. For each
it forks a trainer that dies when that function, named as `Class.method`, is called or returns for
the n-th time, in whatever thread, and answers with the status it ended with. The interpreter's
profiling hook watches, so the code that dies is the code that runs. Forked, because importing torch
takes longer than the steps.
"""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

import services.trainer.assembly  # noqa: F401 - what a trainer imports, once
import shared.service.serve  # noqa: F401
from services.trainer.__main__ import run_trainer
from services.trainer.settings import TrainerSettings


class Executioner:
    """A profiling hook that kills its process."""

    def __init__(self, event: str, name: str, number: int) -> None:
        self._event, self._name, self._left = event, name, number

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> None:
        """Count what is looked for; die without a handler, without cleanup."""
        if event != self._event or frame.f_code.co_qualname != self._name:
            return
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def train_until(event: str, name: str, number: str, settings: TrainerSettings) -> int:
    """The exit status of a trainer that is killed there; negative for a signal."""
    child = os.fork()
    if child == 0:
        hook = Executioner(event, name, int(number))
        threading.setprofile(hook)
        sys.setprofile(hook)
        run_trainer(settings)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    chosen = TrainerSettings.load(sys.argv[1:])
    for line in sys.stdin:
        sys.stdout.write(f"{train_until(*line.split(), chosen)}\n")  # type: ignore[call-arg]
        sys.stdout.flush()
