"""The trainer as a process: killed at the worst moments, stopped by SIGTERM, refused settings."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import redis
import torch

from services.trainer.checkpoint import CheckpointStore
from services.trainer.settings import TrainerSettings
from shared.stream import Fate, RunState, RunStream
from tests.trainer.groups import GroupBuilder
from tests.trainer.runs import (
    feed,
    final_state,
    flags,
    open_stream,
    run_settings,
    steps_of,
    train,
)

ROOT = Path(__file__).resolve().parents[2]

MOMENTS = (
    ("return", "Intake.collect"),  # after read
    ("call", "Learner._reference_logprobs"),  # between forward and backward
    ("return", "StepFigures.add"),  # after a backward
    ("call", "apply_gradient"),  # after the last
    ("return", "apply_gradient"),  # after the optimizer's step
    ("return", "Recorder.write"),
    ("return", "write_state"),  # while the checkpoint is being written
    ("call", "CheckpointStore.commit"),  # written, not yet a checkpoint
    ("call", "_sync_folder"),  # written and described
    ("return", "CheckpointStore.commit"),  # durable, not acknowledged
    ("call", "Publisher._stage"),
    ("return", "Publisher._stage"),  # the version is staged
    ("return", "publish_version"),
    ("call", "Delivery.settle_trained"),  # between checkpoint and acknowledge
    ("return", "Delivery.settle_trained"),  # acknowledged, not announced
    ("return", "Publisher.announce"),
    ("call", "Delivery.finish"),
)
"""One process after another dies at the next of these."""

NUM_STEPS = 10


def run_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


@contextmanager
def deadly_trainers(
    settings: TrainerSettings, log: Path
) -> Iterator[Callable[[str, str, int], int]]:
    """Trains until a moment and tells the exit status."""
    command = [sys.executable, "-m", "tests.trainer.killed_trainer", *flags(settings)]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command,
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None

        def die_at(event: str, name: str, number: int) -> int:
            process.stdin.write(f"{event} {name} {number}\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        yield die_at


def test_killed_at_every_point_of_its_cycle_it_trains_each_group_once_and_to_the_same_end(
    tmp_path: Path,
    checkpoint: Path,
    blob_url: str,
    valkey: redis.Redis,
    valkey_url: str,
    builder: GroupBuilder,
    free_port: Callable[[], int],
) -> None:
    port = free_port()
    num_groups = 2 * NUM_STEPS + 1

    def settings_of(run: str) -> TrainerSettings:
        return run_settings(
            tmp_path,
            checkpoint=checkpoint,
            blob_url=blob_url,
            redis_url=valkey_url,
            run=run,
            max_steps=NUM_STEPS,
            max_off_policy_steps=NUM_STEPS,
            max_outstanding=20,
            keep_versions=20,
            probe_port=port,
        )

    streams: dict[str, RunStream] = {}
    for run in ("whole", "torn"):
        own = GroupBuilder(builder.tokenizer, builder.blobs, run=run)
        streams[run] = open_stream(valkey, run, *(own.group(s) for s in range(num_groups)))
    whole, torn = settings_of("whole"), settings_of("torn")
    train(whole)

    stream = streams["torn"]
    with deadly_trainers(torn, tmp_path / "log") as die_at:
        for event, name in MOMENTS:
            # The first announcement is that of the version it begins with.
            announces = name in ("Publisher.announce", "Publisher._stage", "publish_version")
            assert die_at(event, name, 2 if announces else 1) == -signal.SIGKILL, name
            found = CheckpointStore(torn.run_folder / "checkpoints", 9).newest()
            durable = found[0].fates if found else {}
            for group_id, fate in stream.fates().items():
                assert fate is not Fate.TRAINED or durable[group_id] is Fate.TRAINED, name
    last = run_process("services", "trainer", *flags(torn))
    assert last.returncode == 0, last.stderr

    surplus = f"torn:0:p{num_groups - 1}"
    expected = {f"torn:0:p{s}": Fate.TRAINED for s in range(2 * NUM_STEPS)}
    assert stream.fates() == expected | {surplus: Fate.SURPLUS}
    assert (stream.cursor(), stream.outstanding()) == (num_groups, 0)
    assert stream.state() is RunState.FINISHED
    assert [s["step"] for s in steps_of(torn)] == list(range(1, NUM_STEPS + 1))
    assert final_state(torn).keys() == final_state(whole).keys()
    assert all(torch.equal(v, final_state(whole)[k]) for k, v in final_state(torn).items())
    for version in range(NUM_STEPS + 1):
        ours, theirs = (
            s.weights_root / s.run / f"{version:06d}" / "model.safetensors" for s in (torn, whole)
        )
        assert ours.read_bytes() == theirs.read_bytes()


def test_sigterm_ends_a_waiting_trainer_cleanly_and_its_probes_answer_before(
    tmp_path: Path,
    checkpoint: Path,
    blob_url: str,
    valkey: redis.Redis,
    valkey_url: str,
    builder: GroupBuilder,
    free_port: Callable[[], int],
) -> None:
    port = free_port()
    settings = run_settings(
        tmp_path, checkpoint=checkpoint, blob_url=blob_url, redis_url=valkey_url, probe_port=port
    )
    stream = open_stream(valkey, "run", *(builder.group(s) for s in range(3)))
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "services", "trainer", *flags(settings)], stderr=log, cwd=ROOT
    )
    try:
        deadline = time.monotonic() + 200
        while len(stream.fates()) < 2:
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        url = f"http://127.0.0.1:{port}"
        assert httpx.get(f"{url}/health").json() == {"status": "alive"}
        assert httpx.get(f"{url}/ready").json() == {"status": "ready"}
        assert "medvr_trainer_step 1.0" in httpx.get(f"{url}/metrics").text
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        log.close()
    assert '"stopped at step 1"' in (tmp_path / "log").read_text()
    assert stream.state() is RunState.RUNNING
    assert [e.group_id for e in stream.read_pending()] == ["run:0:p2"]
    feed(stream, builder.group(3))
    train(settings)
    assert {g: f.value for g, f in stream.fates().items()} == {
        f"run:0:p{s}": "trained" for s in range(4)
    }


def test_help_lists_the_settings_and_loads_no_torch() -> None:
    code = (
        "import sys\n"
        "from services.trainer.__main__ import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "loaded = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert "--max-off-policy-steps" in process.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "x"], "run: Field required"),
        (["--model", "x", "--run", "a/b"], "run: String should match pattern"),
        (
            ["--model", "x", "--run", "r", "--checkpoint-every", "2", "--publish-every", "3"],
            "publish_every 3 must be a multiple of checkpoint_every 2",
        ),
        (["--model", "x", "--run", "r", "--clip-low", "1.5"], "clip_low: Input should be less"),
    ],
)
def test_wrong_settings_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from services.trainer.__main__ import main

    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_flow_settings_that_contradict_each_other_end_the_process() -> None:
    process = run_process(
        "services", "trainer", "--model", "x", "--run", "r", "--max-outstanding", "500"
    )
    assert process.returncode == 2
    assert "error: max_outstanding is 500, but must lie between 8" in process.stderr
