"""Groups shaped as EVR makes them: half of the trajectories bases, half branches at their calls.

Texts are the agent's own wording with thoughts of a chosen length, images are noise: what a
trainer's step costs depends on lengths and on what is shared, and on nothing else.
"""

from dataclasses import dataclass

import msgspec
import numpy as np

from services.trainer.sample import ModelLimits, TrainingSample, build_samples
from shared.geometry import ImageSize
from shared.trajectory import Trajectory, TrajectoryGroup, Turn
from tests.trainer.groups import GroupBuilder

_WORDS = ("a", "ring", "near", "the", "left", "edge", "of", "it")


@dataclass(frozen=True)
class Shape:
    """What the groups of a benchmark look like."""

    view_px: int
    """Side of the image as shown."""
    crop_px: int = 168
    group_size: int = 16
    num_zooms: int = 2
    thought_words: int = 40
    """Before each call and the answer."""


def shaped_group(builder: GroupBuilder, seed: int, shape: Shape) -> TrajectoryGroup:
    """One group; the branches are cut at the bases' calls in turn."""
    view = builder.picture(seed, ImageSize(shape.view_px, shape.view_px))
    plain = builder.group(seed, totals=(0.0,), zooms=(0,))
    prompt = [plain.prompt[0], view, plain.prompt[2]]
    num_base = max(1, shape.group_size // 2)
    bases = [_attempt(builder, seed, index, shape) for index in range(num_base)]
    branches = [
        _branch(builder, bases[index % num_base], seed, num_base + index, index, shape)
        for index in range(shape.group_size - num_base)
    ]
    return msgspec.structs.replace(
        plain, prompt=prompt, view_size=view.size, trajectories=[*bases, *branches]
    )


def training_samples(
    builder: GroupBuilder, limits: ModelLimits, num_groups: int, shape: Shape
) -> list[list[TrainingSample]]:
    """The samples of so many groups, with made-up advantages."""
    advantages = np.random.default_rng(0).normal(size=shape.group_size).tolist()
    groups = [shaped_group(builder, seed, shape) for seed in range(num_groups)]
    return [build_samples(group, advantages, limits) for group in groups]


def _attempt(builder: GroupBuilder, seed: int, index: int, shape: Shape) -> Trajectory:
    """A base: a thought and a zoom as often as asked, a thought and an answer."""
    rng = np.random.default_rng([seed, index])
    side = ImageSize(shape.crop_px, shape.crop_px)
    turns: list[Turn] = []
    for zoom in range(shape.num_zooms):
        turn = builder.zoom_turn(1, 0, rng)
        call = turn.call
        assert call is not None
        crop = builder.picture(10_000 * seed + 100 * index + zoom, side)
        before, _, after = turn.observation
        turns.append(
            Turn(
                generation=_thought(builder, turn.generation.text, rng, shape),
                call=msgspec.structs.replace(call, index=zoom, crop=crop),
                observation=[before, crop, after],
            )
        )
    answer = builder.trajectory(seed, index, total=0.0, zooms=0, version=0)
    text = answer.turns[0].generation.text
    turns.append(Turn(generation=_thought(builder, text, rng, shape)))
    return msgspec.structs.replace(answer, turns=turns)


def _thought(builder: GroupBuilder, text: str, rng: np.random.Generator, shape: Shape):
    words = " ".join(rng.choice(_WORDS, shape.thought_words).tolist())
    return builder.generation(text.replace("<think>", f"<think>{words} ", 1), 0, rng)


def _branch(
    builder: GroupBuilder,
    parent: Trajectory,
    seed: int,
    index: int,
    number: int,
    shape: Shape,
) -> Trajectory:
    """A branch at one of its parent's calls: the first, then the second, and so on."""
    own = _attempt(builder, seed, index, shape)
    at = number % shape.num_zooms
    kept, drawn = parent.turns[at].generation, own.turns[at].generation
    cut = len(kept.token_ids) - 24
    lists = ("token_ids", "token_texts", "sampled_logprobs", "entropies_nats")
    joined = {name: getattr(kept, name)[:cut] + getattr(drawn, name)[-24:] for name in lists}
    generation = msgspec.structs.replace(
        drawn,
        **joined,
        version_spans=[msgspec.structs.replace(kept.version_spans[0], num_tokens=cut + 24)],
    )
    first = msgspec.structs.replace(own.turns[at], generation=generation)
    return msgspec.structs.replace(
        own,
        parent_id=parent.trajectory_id,
        forked_at_turn=at,
        forked_at_token=cut,
        turns=[*parent.turns[:at], first, *own.turns[at + 1 :]],
    )
