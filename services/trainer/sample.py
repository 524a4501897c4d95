"""From a trajectory group to training samples: token ids, what is trained, what is shown.

The token order is `shared.trajectory.spans_of`. Only tokens the policy sampled carry a loss; the
prompt, the tool's answers and all image tokens are masked. A group that cannot be trained as it
was sampled (a forbidden token, a token outside the vocabulary, an image whose placeholders do not
fit its size) is a `PayloadError`: it belongs in the dead-letter stream, not in a gradient.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import msgspec

from services.trainer.loss import group_advantages, has_signal
from shared.errors import PayloadError
from shared.geometry import PATCH_FACTOR_PX
from shared.trajectory import Generation, ImageSpan, Span, Trajectory, TrajectoryGroup, spans_of

PROMPT = ""
"""Name of the prompt among the ancestors of a trajectory."""


class ModelLimits(NamedTuple):
    """What the model can be given; read off its checkpoint."""

    vocabulary_size: int
    max_tokens: int
    """Longest sequence its positions cover."""
    image_token_id: int
    forbidden_token_ids: frozenset[int]
    """Vision placeholders, never sampled (METHOD.md, The agent)."""


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """One trajectory, ready to be computed. Lists have one entry per token of the sequence."""

    trajectory_id: str
    input_ids: list[int]
    loss_mask: list[bool]
    """True where the policy sampled the token; never at position 0."""
    sampled_logprobs: list[float]
    """ln μ, one entry per *trained* token, in order."""
    images: tuple[ImageSpan, ...]
    """Shown images in the order of their placeholders."""
    advantage: float
    """A_i; the same for all trained tokens."""
    token_weight: float
    """Of each trained token in the loss; 0 until the whole optimizer batch is known."""
    lineage: dict[str, int]
    """By trajectory, itself and its ancestors: how many of this one's first tokens are also its.

    All of a group have its prompt, under a name of its own (`PROMPT`).
    """

    @property
    def num_trained_tokens(self) -> int:
        """T_i."""
        return len(self.sampled_logprobs)


@dataclass(frozen=True, slots=True)
class TrainingGroup:
    """The samples of one group and the group they came from (for the figures)."""

    group: TrajectoryGroup
    samples: list[TrainingSample]
    has_signal: bool


def shared_tokens(sample: TrainingSample, other: TrainingSample) -> int:
    """How many first tokens two trajectories of a group have in common, by their fork records."""
    common = sample.lineage.keys() & other.lineage.keys()
    return max(min(sample.lineage[name], other.lineage[name]) for name in common)


def rewards_of(group: TrajectoryGroup) -> list[float]:
    """R(T) of every trajectory; `decode_group` made sure that each is scored."""
    return [t.reward.total for t in group.trajectories if t.reward is not None]


def build_group(group: TrajectoryGroup, limits: ModelLimits, *, divide: bool) -> TrainingGroup:
    """Samples with their advantages. Raises `PayloadError` naming the trajectory and the reason."""
    rewards = rewards_of(group)
    if not all(math.isfinite(reward) for reward in rewards):
        raise PayloadError(f"group {group.group_id}: a reward is not finite")
    advantages = group_advantages(rewards, divide=divide)
    samples = build_samples(group, advantages, limits)
    return TrainingGroup(group, samples, has_signal(rewards))


def build_samples(
    group: TrajectoryGroup, advantages: Sequence[float], limits: ModelLimits
) -> list[TrainingSample]:
    """The trajectories of a group, in their order. Raises `PayloadError`."""
    samples: dict[str, TrainingSample] = {}
    for trajectory, advantage in zip(group.trajectories, advantages, strict=True):
        if trajectory.trajectory_id in samples:
            raise PayloadError(f"group {group.group_id}: two of {trajectory.trajectory_id}")
        sample = _build_sample(group, trajectory, advantage, limits)
        samples[sample.trajectory_id] = _with_lineage(group, trajectory, sample, samples)
    return list(samples.values())


def _num_inherited(group: TrajectoryGroup, branch: Trajectory) -> int:
    """Tokens before the fork; 0 for a trajectory that is no branch."""
    if branch.forked_at_turn is None or branch.forked_at_token is None:
        return 0
    inherited = branch.turns[: branch.forked_at_turn]
    spans = spans_of(group.prompt, msgspec.structs.replace(branch, turns=inherited))
    return sum(len(span.token_ids) for span in spans) + branch.forked_at_token


def _with_lineage(
    group: TrajectoryGroup,
    trajectory: Trajectory,
    sample: TrainingSample,
    earlier: Mapping[str, TrainingSample],
) -> TrainingSample:
    """A sample that knows what it has from whom; parents come before their branches.

    The record is held against the tokens: a branch that does not begin as its parent does would
    be trained as something that was never sampled. Raises `PayloadError`.
    """
    num_tokens = len(sample.input_ids)
    num_prompt = sum(len(span.token_ids) for span in group.prompt)
    lineage = {PROMPT: num_prompt, trajectory.trajectory_id: num_tokens}
    if trajectory.parent_id is not None:
        where = f"group {group.group_id}, trajectory {trajectory.trajectory_id}"
        parent = earlier.get(trajectory.parent_id)
        if parent is None:
            raise PayloadError(f"{where}: its parent {trajectory.parent_id} does not come before")
        shared = _num_inherited(group, trajectory)
        if not num_prompt <= shared <= min(num_tokens, len(parent.input_ids)):
            raise PayloadError(f"{where}: forked outside of its parent or of itself")
        if sample.input_ids[:shared] != parent.input_ids[:shared]:
            raise PayloadError(f"{where}: does not begin as its parent does")
        lineage |= {name: min(count, shared) for name, count in parent.lineage.items()}
    return replace(sample, lineage=lineage)


def _build_sample(
    group: TrajectoryGroup,
    trajectory: Trajectory,
    advantage: float,
    limits: ModelLimits,
) -> TrainingSample:
    """One trajectory as a sample. Raises `PayloadError`."""
    where = f"group {group.group_id}, trajectory {trajectory.trajectory_id}"
    input_ids: list[int] = []
    loss_mask: list[bool] = []
    sampled_logprobs: list[float] = []
    images: list[ImageSpan] = []
    for span in spans_of(group.prompt, trajectory):
        is_sampled = isinstance(span, Generation)
        if is_sampled:
            _check_sampled(span, limits, where)
            sampled_logprobs.extend(span.sampled_logprobs)
        else:
            _check_shown(span, limits, where)
            if isinstance(span, ImageSpan):
                images.append(span)
        input_ids.extend(span.token_ids)
        loss_mask.extend([is_sampled] * len(span.token_ids))
    _check_sequence(input_ids, loss_mask, limits, where)
    return TrainingSample(
        trajectory_id=trajectory.trajectory_id,
        input_ids=input_ids,
        loss_mask=loss_mask,
        sampled_logprobs=sampled_logprobs,
        images=tuple(images),
        advantage=advantage,
        token_weight=0.0,
        lineage={trajectory.trajectory_id: len(input_ids)},
    )


def _check_sampled(generation: Generation, limits: ModelLimits, where: str) -> None:
    forbidden = limits.forbidden_token_ids.intersection(generation.token_ids)
    if forbidden:
        raise PayloadError(f"{where}: sampled forbidden vision tokens {sorted(forbidden)}")
    if not all(math.isfinite(logprob) for logprob in generation.sampled_logprobs):
        raise PayloadError(f"{where}: a sampled logprob is not finite")
    if not all(math.isfinite(entropy) for entropy in generation.entropies_nats):
        raise PayloadError(f"{where}: an entropy is not finite")


def _check_shown(span: Span, limits: ModelLimits, where: str) -> None:
    num_placeholders = span.token_ids.count(limits.image_token_id)
    if not isinstance(span, ImageSpan):
        if num_placeholders:
            raise PayloadError(f"{where}: image placeholders in a text span")
        return
    if span.size.width_px % PATCH_FACTOR_PX or span.size.height_px % PATCH_FACTOR_PX:
        raise PayloadError(
            f"{where}: image shown at {span.size.width_px}x{span.size.height_px} px, "
            f"sides must be multiples of {PATCH_FACTOR_PX}"
        )
    if num_placeholders != span.size.num_image_tokens:
        raise PayloadError(
            f"{where}: {num_placeholders} placeholders for an image of "
            f"{span.size.num_image_tokens} tokens"
        )


def _check_sequence(
    input_ids: list[int], loss_mask: list[bool], limits: ModelLimits, where: str
) -> None:
    if not any(loss_mask):
        raise PayloadError(f"{where}: the policy sampled nothing")
    if loss_mask[0]:
        raise PayloadError(f"{where}: starts with a sampled token, a prompt is missing")
    if len(input_ids) > limits.max_tokens:
        raise PayloadError(f"{where}: {len(input_ids)} tokens, the model takes {limits.max_tokens}")
    if min(input_ids) < 0 or max(input_ids) >= limits.vocabulary_size:
        raise PayloadError(f"{where}: a token id is outside the vocabulary")
