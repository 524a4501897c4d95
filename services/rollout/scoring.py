"""A finished group to cca, and back as what the trainer reads: rewards come from nowhere else."""

from collections.abc import Sequence

import msgspec

from services.rollout.branching import BranchingArm
from services.rollout.task import RolloutTask
from shared.agent.opened import OpenedProblem
from shared.api.cca import RewardSettings, ScoredAttempt, ScoreRequest, ScoreResponse, WireReward
from shared.api.zoom import WireBox, WireImageSize
from shared.geometry import Box
from shared.problem import Problem
from shared.trajectory import SCHEMA_VERSION, RewardBreakdown, Trajectory, TrajectoryGroup


def score_request(
    problem: Problem,
    opened: OpenedProblem,
    trajectories: Sequence[Trajectory],
    settings: RewardSettings,
) -> ScoreRequest:
    """The whole group as the scorer sees it: answers, format facts, boxes whose crop was shown."""
    return ScoreRequest(
        gold_answer=problem.gold_answer,
        answer_kind=problem.answer_kind,
        options=list(problem.options),
        image_size=WireImageSize(
            width_px=opened.image_size.width_px, height_px=opened.image_size.height_px
        ),
        attempts=[
            ScoredAttempt(
                trajectory_id=trajectory.trajectory_id,
                answer=trajectory.answer,
                is_well_formed=trajectory.format_facts.is_well_formed,
                all_calls_parsed=trajectory.format_facts.all_calls_parsed,
                boxes=[WireBox(x1=b.x1, y1=b.y1, x2=b.x2, y2=b.y2) for b in trajectory.boxes],
            )
            for trajectory in trajectories
        ],
        settings=settings,
    )


def scored_group(
    task: RolloutTask,
    opened: OpenedProblem,
    trajectories: Sequence[Trajectory],
    scores: ScoreResponse,
    *,
    arm: str,
    rollout_seconds: float,
) -> TrajectoryGroup:
    """The group as it goes on the stream; `scores` are in the order of the trajectories."""
    assert opened.prompt is not None
    return TrajectoryGroup(
        schema_version=SCHEMA_VERSION,
        group_id=task.group_id,
        run=task.run,
        problem_id=task.problem.problem_id,
        round=task.round,
        image=task.problem.image,
        image_size=opened.image_size,
        view_size=opened.view_size,
        answer_kind=task.problem.answer_kind,
        prompt=opened.prompt,
        trajectories=[
            msgspec.structs.replace(trajectory, reward=_breakdown(reward))
            for trajectory, reward in zip(trajectories, scores.rewards, strict=True)
        ],
        consensus=[Box(b.x1, b.y1, b.x2, b.y2) for b in scores.consensus.rectangles],
        arm=arm,
        rollout_seconds=rollout_seconds,
    )


def arm_name(branching: BranchingArm, reward: RewardSettings) -> str:
    """`evr+cca`: what a group was made under, for reports."""
    return f"{branching.value}+{reward.arm.value}"


def _breakdown(reward: WireReward) -> RewardBreakdown:
    return RewardBreakdown(
        accuracy=reward.accuracy,
        format=reward.format,
        tool=reward.tool,
        total=reward.total,
        consensus_iou=reward.consensus_iou,
    )
