"""From a trajectory group to training samples: token ids, what is trained, what is shown.

The token order is `shared.trajectory.spans_of`. Only tokens the policy sampled carry a loss; the
prompt, the tool's answers and all image tokens are masked. A group that cannot be trained as it
was sampled (a forbidden token, a token outside the vocabulary, an image whose placeholders do not
fit its size) is a `PayloadError`: it belongs in the dead-letter stream, not in a gradient.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from services.trainer.loss import group_advantages, has_signal
from shared.errors import PayloadError
from shared.geometry import PATCH_FACTOR_PX
from shared.trajectory import Generation, ImageSpan, Span, Trajectory, TrajectoryGroup, spans_of


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


def rewards_of(group: TrajectoryGroup) -> list[float]:
    """R(T) of every trajectory; `decode_group` made sure that each is scored."""
    return [t.reward.total for t in group.trajectories if t.reward is not None]


def build_group(group: TrajectoryGroup, limits: ModelLimits, *, divide: bool) -> TrainingGroup:
    """Samples with their advantages. Raises `PayloadError` naming the trajectory and the reason."""
    rewards = rewards_of(group)
    if not all(math.isfinite(reward) for reward in rewards):
        raise PayloadError(f"group {group.group_id}: a reward is not finite")
    advantages = group_advantages(rewards, divide=divide)
    samples = [
        build_sample(group, trajectory, advantage, limits)
        for trajectory, advantage in zip(group.trajectories, advantages, strict=True)
    ]
    return TrainingGroup(group=group, samples=samples, has_signal=has_signal(rewards))


def build_sample(
    group: TrajectoryGroup, trajectory: Trajectory, advantage: float, limits: ModelLimits
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
