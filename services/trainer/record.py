"""What one optimizer batch was like: the record that every display and curve is made of.

`StepRecord` is a line of `<run folder>/steps.jsonl` (field names as they are). Each numeric field
is also the Prometheus gauge and the TensorBoard scalar `medvr_trainer_<field>`. Means over
*consumed* groups include those without signal, which are not trained: else a policy that solves
half its problems outright would look no better than one that solves none. Stale and dead groups
are in no mean.

A line is written when its step was taken, before its checkpoint; a resumed run drops the lines
after its checkpoint, so each step is in the file once. `seconds_save`, `seconds_checkpoint` and
`seconds_publish` are therefore those of the last checkpoint and publication before the line.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Self

import msgspec

from services.trainer.sample import TrainingGroup, rewards_of
from shared.trajectory import Trajectory, TrajectoryGroup


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What one optimizer batch was like; one line of steps.jsonl."""

    time: float
    """Unix time at the end of the update, seconds."""
    step: int
    """Optimizer batches taken, this one included."""
    policy_version: float
    """Mean over sampled tokens of the version that sampled them."""

    reward: float
    """Mean R(T) over all trajectories of the consumed groups, like the five below."""
    reward_accuracy: float
    reward_format: float
    reward_tool: float
    accuracy: float
    """Share of trajectories with R_acc > 0."""
    consensus_iou: float
    """Mean IoU with the consensus, over correct trajectories that zoomed."""
    zooms: float
    """Zooms shown per trajectory."""
    box_area: float
    """Mean area of a box as a share of its image."""
    entropy_nats: float
    """Mean H_t over sampled tokens."""
    entropy_increase_nats: float
    """Mean ΔH_tool over the calls EVR looked at; 0 if there were none."""
    response_tokens: float
    """Sampled tokens per trajectory."""
    answered_share: float
    """Share of trajectories that gave an answer."""

    reward_std: float
    """Mean over trained groups of the standard deviation of their rewards (ddof 1)."""
    advantage_spread: float
    """Mean over trained groups of max A − min A."""
    zero_variance_share: float
    """Consumed groups without signal, of those consumed for this step."""

    loss: float
    """METHOD.md's L over the batch; with one update per batch only its gradient means something."""
    kl_reference: float
    """k3(π_θ‖π_ref)."""
    mismatch_kl: float
    """k3(μ‖π_old): engine against trainer; about 0.001 is healthy."""
    logprob_difference: float
    """Mean |ln π_old − ln μ|; includes what staleness adds."""
    clip_fraction: float
    """Trained tokens whose clipped branch was the smaller; 0 with one update per batch."""
    ratio_p1: float
    """π_θ/π_old over trained tokens, percentiles 1, 50, 99; 1 with one update per batch."""
    ratio_p50: float
    ratio_p99: float
    mismatch_ratio_p1: float
    """π_old/μ over trained tokens, likewise."""
    mismatch_ratio_p50: float
    mismatch_ratio_p99: float
    is_cap_fraction: float
    """Trained tokens with π_old/μ over its cap."""
    grad_norm: float
    """2-norm before clipping; with several updates per batch their mean, like the means above."""
    lr: float
    tokens_trained: int
    """Of all trajectories, as the loss counts them."""
    tokens_computed: int
    """Distinct tokens of the trees, prompts and images included."""
    tokens_saved: int
    """That trajectories computed one by one would take beyond that."""
    trajectories_trained: int

    staleness: float
    """Mean over trained groups of (step before the update − oldest version)."""
    rollout_seconds: float
    """Mean time a consumed group took to roll out."""
    stream_length: int
    """Groups on the stream after the update, unsettled ones included."""
    stream_lag: int
    """Of these, not yet read."""
    oldest_group_seconds: float
    """How long the oldest of them has been there."""
    outstanding: int
    """Fed groups without a fate after the update."""
    groups_trained: int
    """Groups by fate since the run began, like the four below."""
    groups_stale: int
    groups_no_signal: int
    groups_dead: int
    groups_surplus: int

    seconds_wait: float
    """Collecting the batch: mostly waiting for rollouts."""
    seconds_prepare: float
    """Padding, patches."""
    seconds_forward_backward: float
    seconds_optimizer: float
    seconds_save: float
    """Waiting for the checkpoint before to be durable, and copying the weights."""
    seconds_checkpoint: float
    """Writing it, behind the next batch: these two overlap with the phases above."""
    seconds_publish: float


class GroupBoxes(msgspec.Struct, frozen=True):
    """Where a consumed group looked; one line of boxes.jsonl."""

    step: int
    """The step the group was consumed for, as in `StepRecord`."""
    group_id: str
    problem_id: str
    boxes: list[list[tuple[int, int, int, int]]]
    """One list per trajectory: shown boxes as cropped, (x1, y1, x2, y2) in original pixels."""

    @classmethod
    def of(cls, group: TrajectoryGroup, step: int) -> Self:
        """The boxes of a group."""
        boxes = [[box.as_tuple() for box in t.boxes] for t in group.trajectories]
        return cls(step=step, group_id=group.group_id, problem_id=group.problem_id, boxes=boxes)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def describe_consumed(groups: Sequence[TrajectoryGroup]) -> dict[str, float]:
    """The fields that speak of the consumed groups."""
    pairs = [(group, t) for group in groups for t in group.trajectories]
    trajectories = [t for _, t in pairs]
    rewards = [t.reward for t in trajectories if t.reward is not None]
    generations = [turn.generation for t in trajectories for turn in t.turns]
    spans = [span for generation in generations for span in generation.version_spans]
    num_tokens = max(1, sum(span.num_tokens for span in spans))
    calls = [turn.call for t in trajectories for turn in t.turns if turn.call is not None]
    return {
        "policy_version": sum(s.version * s.num_tokens for s in spans) / num_tokens,
        "reward": _mean([r.total for r in rewards]),
        "reward_accuracy": _mean([r.accuracy for r in rewards]),
        "reward_format": _mean([r.format for r in rewards]),
        "reward_tool": _mean([r.tool for r in rewards]),
        "accuracy": _mean([float(r.accuracy > 0) for r in rewards]),
        "consensus_iou": _mean([iou for t in trajectories if (iou := _iou(t)) is not None]),
        "zooms": _mean([len(t.boxes) for t in trajectories]),
        "box_area": _mean(
            [box.area_px / group.image_size.num_pixels for group, t in pairs for box in t.boxes]
        ),
        "entropy_nats": sum(h for g in generations for h in g.entropies_nats) / num_tokens,
        "entropy_increase_nats": _mean(
            [c.fork.entropy_increase_nats for c in calls if c.fork is not None]
        ),
        "response_tokens": _mean([t.num_sampled_tokens for t in trajectories]),
        "answered_share": _mean([float(t.answer is not None) for t in trajectories]),
        "rollout_seconds": _mean([group.rollout_seconds for group in groups]),
    }


def _iou(trajectory: Trajectory) -> float | None:
    reward = trajectory.reward
    if reward is None or reward.accuracy <= 0 or not trajectory.boxes:
        return None
    return reward.consensus_iou


def describe_trained(groups: Sequence[TrainingGroup], step: int) -> dict[str, float]:
    """The fields that speak of the trained groups; `step` counts the steps before the update."""
    spreads = [
        max(s.advantage for s in g.samples) - min(s.advantage for s in g.samples) for g in groups
    ]
    return {
        "reward_std": _mean([statistics.stdev(rewards_of(g.group)) for g in groups]),
        "advantage_spread": _mean(spreads),
        "staleness": _mean([step - g.group.oldest_version for g in groups]),
    }


def percentile_fields(name: str, percentiles: Sequence[float]) -> dict[str, float]:
    """Percentiles 1, 50 and 99 of something."""
    places = ("p1", "p50", "p99")
    return {f"{name}_{p}": value for p, value in zip(places, percentiles, strict=True)}


def seconds_fields(seconds: Mapping[str, float]) -> dict[str, float]:
    """`wait` → `seconds_wait`, for the phases of a step."""
    return {f"seconds_{phase}": value for phase, value in seconds.items()}
