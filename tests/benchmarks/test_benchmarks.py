"""Every benchmark, as small as it goes: what it says about its own run, and no time at all."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from benchmarks import (
    cca,
    clinic,
    entropy,
    evidence,
    loop,
    record,
    rollout,
    trainer,
    trainer_gpu,
    windowing,
    zoom,
)
from benchmarks.__main__ import NAMES
from benchmarks.__main__ import main as run_all
from benchmarks.outcome import Outcome, decode_outcome
from benchmarks.recording import Recording
from benchmarks.results import read_results
from benchmarks.services import CHECKPOINT
from benchmarks.ways import OTHERS

Main = Callable[[Sequence[str]], None]


def outcome_of(main: Main, *flags: object, capsys: pytest.CaptureFixture[str]) -> Outcome:
    """Run it, and read its last line."""
    main([str(flag) for flag in flags])
    return decode_outcome(capsys.readouterr().out.splitlines()[-1])


def test_cca_compares_equal_results_at_every_size(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = outcome_of(cca.main, "--sides", 64, 128, "--repeats", 2, capsys=capsys)
    assert set(outcome.detail["by_side_px"]) == {"64", "128"}
    assert outcome.figure > 0
    assert outcome.aim is None, "the aim is for 1024 px"


def test_zoom_counts_every_crop(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flags = ("--side", 400, "--repeats", 2, "--requests", 12, "--callers", 4, "--folder", tmp_path)
    outcome = outcome_of(zoom.main, *flags, capsys=capsys)
    assert outcome.detail["callers"] == 4
    assert outcome.detail["p50_ms"] <= outcome.detail["p99_ms"] <= outcome.detail["worst_ms"]


@pytest.mark.timeout(900)
def test_entropy_compares_servers_and_kernels(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = ("--kernel-rows", 4, "--kernel-vocabulary", 5000, "--requests", 4, "--repeats", 2)
    outcome = outcome_of(entropy.main, *flags, "--folder", tmp_path, capsys=capsys)
    assert outcome.detail["kernel"]["largest_error_nats"] < 1e-4
    assert all(num > 0 for num in outcome.detail["num_tokens"])


@pytest.mark.timeout(900)
def test_rollout_makes_both_kinds_of_groups_and_serves_branches_from_cache(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = ("--repeats", 2, "--in-flight", 2, "--group-size", 4, "--folder", tmp_path)
    outcome = outcome_of(rollout.main, *flags, capsys=capsys)
    evr, independent = outcome.detail["evr"], outcome.detail["independent"]
    assert evr["groups"] == independent["groups"] == 4
    assert independent["branches_per_group"] == 0
    cache = outcome.detail["cache"]
    assert 0 < cache["cached_tokens"] <= cache["inherited_tokens"]


@pytest.mark.timeout(900)
def test_loop_says_where_the_time_goes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flags = ("--steps", 2, "--warm-up", 1, "--problems", 12, "--group-size", 4)
    outcome = outcome_of(loop.main, *flags, "--folder", tmp_path, capsys=capsys)
    assert outcome.detail["steps"] == 2
    assert outcome.detail["trajectories"] % 4 == 0
    assert outcome.detail["trajectories"] >= 2 * 8 * 4
    used = outcome.detail["cpu_ms_per_trajectory"]
    assert {"trainer", "policy: engine", "policy: server", "rollout", "zoom", "cca"} <= set(used)
    assert used["trainer"] > 0
    assert used["policy: engine"] > 0


def test_trainer_compares_equal_gradients(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--view-px", 112, "--group-size", 4, "--repeats", 1, "--brief")
    outcome = outcome_of(trainer.main, *flags, capsys=capsys)
    judged = outcome.detail["judged"]
    assert judged["gradient_difference"] < 1e-4
    assert judged["gradient_difference_of_trl"] < 1e-4
    assert judged["trajectories"] == 4
    assert judged["tokens_one_by_one_over_distinct"] > 1.2
    assert set(judged["seconds"]) == {"trees", *OTHERS}
    assert 1 < judged["flops_ratio"] < judged["tokens_one_by_one_over_distinct"]
    assert judged["flops_ratio"] < judged["flops_ratio_by_size"]["7b"]


@pytest.mark.timeout(900)
def test_recorded_groups_are_kept_with_what_they_show(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out.zip"
    flags = ("--groups", 1, "--group-size", 4, "--model", CHECKPOINT, "--folder", tmp_path)
    record.main([str(flag) for flag in (*flags, "--out", out)])
    assert capsys.readouterr().out.startswith(f"{out}: 1 groups, ")
    recording = Recording.read(out)
    (group,) = recording.groups
    assert len(group.trajectories) == 4
    assert len({t.reward.total for t in group.trajectories if t.reward}) > 1
    assert recording.made_by.endswith(f"--group-size 4 --max-turns 3 --model {CHECKPOINT}")


def test_trainer_on_cuda_says_that_it_needs_a_cuda_device(
    capsys: pytest.CaptureFixture[str],
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit) as stopped:
        trainer_gpu.main([])
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: benchmarks.trainer_gpu needs a CUDA device")


@pytest.mark.parametrize("adapters", [(), ("--lora",)])
def test_trainer_on_cuda_computes_the_same_both_ways(
    adapters: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = ("--device", "cpu", "--shape", "tiny", "--view-px", 168, "--crop-px", 56)
    small = ("--group-size", 4, "--thought-words", 4, "--repeats", 1, "--results", tmp_path)
    outcome = outcome_of(trainer_gpu.main, *flags, *small, *adapters, capsys=capsys)
    found = outcome.detail["tiny"]
    trees, packed = found["trees"], found["packed"]
    assert trees["mean_logprob"] == pytest.approx(packed["mean_logprob"], rel=1e-3)
    assert trees["grad_norm"] == pytest.approx(packed["grad_norm"], rel=1e-3)
    assert packed["tokens"] > 1.5 * trees["tokens"]
    assert trees["peak_memory_gib"] > 0
    assert trees["mfu"] is None, "nobody states a processor's peak"
    is_part = found["trained_parameters"] < found["parameters"] / 10
    assert is_part == bool(adapters)
    (kept,) = read_results(tmp_path, ["trainer_gpu"])
    assert kept.outcome == outcome
    assert kept.machine.startswith("CPU beside ")


def test_a_name_that_is_no_benchmark_is_refused_with_those_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        run_all(["speed"])
    assert f"no benchmark speed: there are {', '.join(NAMES)}" in capsys.readouterr().err


def test_every_benchmark_has_a_module() -> None:
    assert {sys.modules[f"benchmarks.{name}"] for name in NAMES} == {
        cca, clinic, entropy, evidence, loop, rollout, trainer, windowing, zoom,
    }  # fmt: skip
