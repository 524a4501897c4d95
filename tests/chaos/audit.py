"""What must hold when it is all over, whatever was killed: docs/decisions/0007 and 0009."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from services.local.channel import describe_policy, read_channel
from services.rollout.order import ProblemOrder
from services.trainer.checkpoint import CheckpointStore
from shared.stream import Fate, RunState
from shared.weights import TRAIN_CHANNEL, verify_version
from tests.chaos.inquiry import Inquiry
from tests.chaos.system import System
from tests.chaos.witness import Witness


def lines_of(path: Path) -> list[dict[str, Any]]:
    """A file of JSON lines."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def audit_fates(system: System) -> Counter[Fate]:
    """Every fed group has one fate; what was trained was trained once. Returns the fates."""
    stream, plan = system.stream, system.plan
    assert stream.state() is RunState.FINISHED
    assert stream.outstanding() == 0
    fates, cursor = stream.fates(), stream.cursor()
    order = ProblemOrder(system.run, system.problems, plan.seed)
    fed = [order.task_at(position).group_id for position in range(cursor)]
    assert sorted(fates) == sorted(fed), f"{len(fates)} fates, {cursor} fed"
    reasons = [fields[b"reason"] for _, fields in system.redis.xrange(stream.dead_key)]
    assert Fate.DEAD not in fates.values(), f"dead: {reasons}"

    num_trained = plan.trainer.max_steps * plan.trainer.groups_per_step
    trained = {group_id for group_id, fate in fates.items() if fate is Fate.TRAINED}
    assert len(trained) == num_trained

    newest = CheckpointStore(system.run_folder / "checkpoints", 9).newest()
    assert newest is not None
    progress = newest[0]
    assert progress.step == plan.trainer.max_steps
    in_weights = {i for i, fate in progress.fates.items() if fate is Fate.TRAINED}
    assert in_weights == trained, "checkpoint and Redis differ on what was trained"
    assert all(fates[group_id] is fate for group_id, fate in progress.fates.items())
    _audit_record(system, trained)
    return Counter(fates.values())


def _audit_record(system: System, trained: set[str]) -> None:
    """steps.jsonl and boxes.jsonl: each step once, each trained group in one step."""
    trainer, group_size = system.plan.trainer, system.plan.rollout.group_size
    steps = lines_of(system.run_folder / "steps.jsonl")
    assert [step["step"] for step in steps] == list(range(1, trainer.max_steps + 1))
    in_step = trainer.groups_per_step * group_size
    assert [step["trajectories_trained"] for step in steps] == [in_step] * trainer.max_steps
    taken_in = Counter(line["group_id"] for line in lines_of(system.run_folder / "boxes.jsonl"))
    assert set(taken_in.values()) == {1}, "a group was taken in twice"
    assert trained <= set(taken_in)


def audit_versions(system: System, witness: Witness) -> None:
    """Only checkpointed steps were published, never twice; all hold; the last one is served."""
    last = system.plan.trainer.max_steps
    assert witness.contradictions == []
    folders = sorted(p for p in system.versions_folder.iterdir() if p.name.isdigit())
    assert int(folders[-1].name) == last
    for folder in folders:
        manifest = verify_version(folder)
        assert (manifest.run, manifest.version) == (system.run, int(folder.name))
        seen = witness.hashes_by_version.get(manifest.version, manifest.sha256_by_file)
        assert manifest.sha256_by_file == seen
    pointer = read_channel(system.redis, TRAIN_CHANNEL)
    assert pointer is not None
    assert (pointer.run, pointer.version) == (system.run, last)
    assert witness.sampled_versions <= set(range(last + 1))
    assert len(witness.sampled_versions) > 1, "the policy never changed"
    served = describe_policy(system.lines.policy_url)
    assert (served.run, served.version) == (system.run, last)


def audit_cases(inquiries: list[Inquiry]) -> None:
    """Exactly one case came of every question, and it was answered."""
    for inquiry in inquiries:
        assert inquiry.case is not None, f"lost: {inquiry.question}"
        assert inquiry.case["status"] in {"answered", "abstained"}, inquiry.case["failure"]
        assert inquiry.matching_cases() == [inquiry.case["case_id"]]
