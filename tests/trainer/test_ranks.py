"""Several ranks under torchrun: the same training as one process's, whatever their number."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from services.trainer.settings import TrainerSettings
from shared.stream import Fate, RunState, RunStream
from shared.trajectory import TrajectoryGroup
from tests.trainer.groups import GroupBuilder
from tests.trainer.runs import feed, final_state, flags, open_stream, run_settings, steps_of, train

ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS = 3


def torchrun(num_ranks: int, settings: TrainerSettings, port: int) -> subprocess.Popen[str]:
    """A trainer of several processes."""
    # Without the dashes torchrun takes --run for one of its own.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(num_ranks)]
    return subprocess.Popen(
        [
            *launcher,
            "--master-port",
            str(port),
            "-m",
            "--",
            "services",
            "trainer",
            *flags(settings),
        ],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate(timeout=250)
    assert process.returncode == 0, output


class Runs:
    """Runs of the same groups under different names."""

    def __init__(
        self,
        folder: Path,
        checkpoint: Path,
        blob_url: str,
        client: redis.Redis,
        url: str,
        builder: GroupBuilder,
        free_port: Callable[[], int],
    ) -> None:
        self.client = client
        self._builder = builder
        self.free_port = free_port
        self._given = {"checkpoint": checkpoint, "blob_url": blob_url, "redis_url": url}
        self._folder = folder

    def settings(self, run: str, **others: object) -> TrainerSettings:
        """Five groups a step, so that two ranks get different shares."""
        chosen = {"max_steps": NUM_STEPS, "groups_per_step": 5, "max_outstanding": 20, **others}
        return run_settings(
            self._folder, run=run, probe_port=self.free_port(), **self._given, **chosen
        )

    def stream(self, settings: TrainerSettings) -> RunStream:
        """With all the groups it needs."""
        steps = range(1, NUM_STEPS + 1)
        groups = [group for step in steps for group in self.groups(settings, step)]
        return open_stream(self.client, settings.run, *groups)

    def groups(self, settings: TrainerSettings, step: int) -> list[TrajectoryGroup]:
        """Those of one step."""
        own = GroupBuilder(self._builder.tokenizer, self._builder.blobs, run=settings.run)
        end = step * settings.groups_per_step
        return [own.group(seed) for seed in range(end - settings.groups_per_step, end)]

    def by_ranks(self, num_ranks: int, settings: TrainerSettings) -> None:
        """Train by so many processes, to the end."""
        finish(torchrun(num_ranks, settings, self.free_port()))


@pytest.fixture
def runs(
    tmp_path: Path,
    checkpoint: Path,
    blob_url: str,
    valkey: redis.Redis,
    valkey_url: str,
    builder: GroupBuilder,
    free_port: Callable[[], int],
) -> Runs:
    return Runs(tmp_path, checkpoint, blob_url, valkey, valkey_url, builder, free_port)


def distance(ours: TrainerSettings, theirs: TrainerSettings) -> float:
    """Largest difference of a weight or of a moment of AdamW."""
    left, right = final_state(ours), final_state(theirs)
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


@pytest.mark.parametrize(
    "others",
    [
        {"kl_beta": 0.01, "updates_per_batch": 2},
        {"lora_rank": 4, "kl_beta": 0.01},
        {"gradient_checkpointing": True, "freeze_vision": True},
    ],
    ids=["all weights", "adapters", "recomputed, vision frozen"],
)
def test_two_ranks_train_what_one_process_trains(runs: Runs, others: dict[str, object]) -> None:
    alone, together = (runs.settings(name, lr=1e-4, **others) for name in ("alone", "together"))
    runs.stream(alone)
    stream = runs.stream(together)
    train(alone)
    runs.by_ranks(2, together)
    assert distance(together, alone) < 1e-5
    assert (stream.state(), set(stream.fates().values())) == (RunState.FINISHED, {Fate.TRAINED})
    for ours, theirs in zip(steps_of(together), steps_of(alone), strict=True):
        for name in ("grad_norm", "kl_reference", "mismatch_kl", "tokens_trained", "reward"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-7), name


def test_a_run_goes_on_with_another_number_of_ranks(runs: Runs) -> None:
    whole, torn = (runs.settings(name, lr=1e-4) for name in ("whole", "torn"))
    runs.stream(whole)
    train(whole)
    stream = open_stream(runs.client, "torn")
    for step, num_ranks in enumerate((2, 1, 2), start=1):
        process = torchrun(num_ranks, torn, runs.free_port())
        feed(stream, *runs.groups(torn, step))
        if step == NUM_STEPS:
            finish(process)
            break
        deadline = time.monotonic() + 200
        while len(stream.fates()) < step * torn.groups_per_step:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=100)
        assert f'"stopped at step {step}"' in output
    assert stream.state() is RunState.FINISHED
    assert distance(torn, whole) < 1e-5
