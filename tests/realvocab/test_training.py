"""One group, one step, one swap on the second checkpoint, by the embedded stack's own processes."""

import time
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

import msgspec
import numpy as np
import pytest
import redis

from services.local.demo_settings import Arm, DemoPlan, RolloutPlan, TrainerPlan
from services.local.ready import log_tail
from services.local.supervisor import ChildState
from shared.api.policy import GenerateRequest, ImageSegment, TextSegment
from shared.clients.policy import PolicyClient
from shared.clients.zoom import ZoomClient
from shared.geometry import ImageSize
from shared.problem import AnswerKind, Problem, ProblemSetManifest, write_problem_set
from shared.render import encode_png
from shared.stream import Fate, RunState, RunStream
from shared.trajectory import ForkOrigin, Trajectory, TrajectoryGroup, decode_group
from shared.weights import verify_version
from tests.policy.reference import Reference
from tests.realvocab.played import RunningStack, picture
from tests.realvocab.test_served import BOX
from tests.realvocab.warmup import OPTIONS, QUESTION

PLAN = DemoPlan(
    rollout=RolloutPlan(
        group_size=6,
        max_turns=5,
        concurrency=1,
        group_timeout_s=600.0,
        visibility_timeout_s=900.0,
    ),
    trainer=TrainerPlan(
        max_steps=1, groups_per_step=1, max_outstanding=2, lr=1e-3, warmup_steps=0, pack_tokens=600
    ),
)
RUN = PLAN.run_of(Arm.MEDVR)
PATIENCE_S = 900.0
IMAGE_SIZE = (336, 280)


def until(stack: RunningStack, is_true: Callable[[], object]) -> None:
    """Wait for something; the end of every log if a process crashes before."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_true():
        tails = [line for c in stack.supervisor.children() for line in log_tail(c.log, 5)]
        assert stack.num_restarts() == 0, "\n".join(tails)
        assert time.monotonic() < deadline, "\n".join(tails)
        time.sleep(0.2)


async def problem_set(stack: RunningStack, folder: Path) -> Path:
    zoom = ZoomClient(stack.lines.zoom_url)
    stored = [await zoom.ingest(encode_png(picture(50 + i, IMAGE_SIZE))) for i in range(4)]
    await zoom.aclose()
    problems = [
        Problem(
            problem_id=f"p{number}",
            image=each.image,
            image_size=ImageSize(*IMAGE_SIZE),
            question=QUESTION,
            options=OPTIONS,
            gold_answer="AB"[number % 2],
            answer_kind=AnswerKind.CHOICE,
        )
        for number, each in enumerate(stored)
    ]
    manifest = ProblemSetManifest(name="s", num_problems=len(problems), seed=0, source="test")
    write_problem_set(folder, manifest, problems)
    return folder


def inherits_up_to_its_box(branch: Trajectory, parent: Trajectory) -> None:
    """A branch has its parent's tokens up to, but without, the first coordinate of a call."""
    at_turn, at_token = branch.forked_at_turn, branch.forked_at_token
    assert at_turn is not None
    assert at_token is not None
    cut, whole = branch.turns[at_turn].generation, parent.turns[at_turn].generation
    shared = list(
        takewhile(lambda ids: ids[0] == ids[1], zip(cut.token_ids, whole.token_ids, strict=False))
    )
    assert len(shared) >= at_token
    assert cut.sampled_logprobs[:at_token] == whole.sampled_logprobs[:at_token]
    match = BOX.search(whole.text)
    assert match is not None
    assert len("".join(whole.token_texts[:at_token])) == match.start("box")
    call = parent.turns[at_turn].call
    assert call is not None
    assert call.first_coordinate_token == at_token


def check_group(group: TrajectoryGroup) -> None:
    by_id = {t.trajectory_id: t for t in group.trajectories}
    assert len(by_id) == PLAN.rollout.group_size
    branches = [t for t in group.trajectories if t.origin in (ForkOrigin.DRAWN, ForkOrigin.FILLED)]
    assert len(branches) == PLAN.rollout.group_size // 2
    for branch in branches:
        assert branch.parent_id is not None
        inherits_up_to_its_box(branch, by_id[branch.parent_id])
    assert {t.oldest_version for t in group.trajectories} == {0}


@pytest.mark.timeout(2 * PATIENCE_S)
async def test_one_group_one_step_one_swap(stack: RunningStack, tmp_path: Path) -> None:
    lines, supervisor = stack.lines, stack.supervisor
    problems = await problem_set(stack, tmp_path / "set")
    with redis.Redis.from_url(lines.redis_url) as client:
        stream = RunStream(client, RUN)
        stream.open({}, 0)
        supervisor.start(lines.rollout(PLAN, Arm.MEDVR))
        supervisor.start(lines.feeder(PLAN, Arm.MEDVR, problems))
        until(stack, lambda: stream.length() >= 1)
        ((_, entry),) = client.xrange(stream.groups_key, count=1)
        check_group(decode_group(entry[b"group"]))

        supervisor.start(lines.trainer(PLAN, Arm.MEDVR, stack.checkpoint))
        until(stack, lambda: supervisor.child("trainer").state is ChildState.FINISHED)
        supervisor.stop("feeder", "rollout")
        assert stream.state() is RunState.FINISHED
        fates = list(stream.fates().values())
        assert fates.count(Fate.TRAINED) == 1
        assert Fate.DEAD not in fates
    (step,) = (lines.paths.runs / RUN / "steps.jsonl").read_bytes().splitlines()
    figures = msgspec.json.decode(step)
    assert figures["trajectories_trained"] == PLAN.rollout.group_size
    assert figures["logprob_difference"] < 1e-3, "the trainer computes what the engine sampled"
    assert figures["grad_norm"] > 0
    await the_new_version_is_served(stack)
    assert stack.num_restarts() == 0


async def the_new_version_is_served(stack: RunningStack) -> None:
    """Every number is that of the published weights, and not of the old ones."""
    published = stack.lines.paths.weights / RUN / "000001"
    assert verify_version(published).version == 1
    policy = PolicyClient(stack.lines.policy_url)
    deadline = time.monotonic() + PATIENCE_S
    while (await policy.describe()).version != 1:
        assert time.monotonic() < deadline, "the policy did not swap"
        time.sleep(0.1)
    image = picture(99, (168, 140))
    segments = [
        TextSegment(text="<|im_start|>user\n"),
        ImageSegment(image=stack.blobs.put(encode_png(image))),
        TextSegment(text=f" {QUESTION}<|im_end|>\n<|im_start|>assistant\n"),
    ]
    turn = await policy.generate(GenerateRequest(segments=segments, max_tokens=40, seed=1))
    await policy.aclose()
    assert [span.version for span in turn.version_spans] == [1]
    prompt = [token_id for ids in turn.segment_token_ids for token_id in ids]
    for folder, is_served in ((published, True), (stack.checkpoint, False)):
        logprobs, _ = Reference(folder).continuation(prompt, [image], turn.token_ids)
        difference = float(np.abs(np.array(turn.sampled_logprobs) - logprobs).mean())
        assert (difference < 1e-3) is is_served, (folder, difference)
