"""Groups for the trainer's benchmark: recorded ones, and made-up ones of a chosen shape.

Recorded groups can be shown a larger view than they were made with, and be cut to a part of their
trajectories. The tiny policy cannot be run at 672 px itself: it has only ever seen 168 px, and a
copy of it whose manifest allows larger views answers them with a closing tag. So the view of a
recorded group is drawn larger afterwards; turns, forks, crops and all texts stay what they were.

Made-up groups are shaped as EVR makes them: half of the trajectories bases, half branches at their
calls. Texts are the agent's own wording with thoughts of a chosen length, images are noise: what a
trainer's step costs depends on lengths and on what is shared, and on nothing else.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from benchmarks.recording import FOLDER, Recording
from services.trainer.sample import ModelLimits, TrainingSample, build_samples
from shared.blobs import BlobStore
from shared.geometry import ImageSize
from shared.render import encode_png
from shared.trajectory import ImageSpan, Trajectory, TrajectoryGroup, Turn
from tests.trainer.groups import GroupBuilder

_WORDS = ("a", "ring", "near", "the", "left", "edge", "of", "it")


@dataclass(frozen=True)
class Recorded:
    """Groups of a recording."""

    name: str
    """Of its file."""
    num_groups: int
    view_px: int | None = None
    """Side of the view; None leaves it as recorded."""
    group_size: int | None = None
    """Trajectories of each that are taken; None takes all."""

    def groups(self, model: Path, blobs: BlobStore) -> list[TrajectoryGroup]:  # noqa: ARG002
        """The groups; their images are put into `blobs`."""
        groups = Recording.read(FOLDER / f"{self.name}.zip").unpack(blobs)[: self.num_groups]
        if self.view_px is not None:
            groups = [with_view(group, self.view_px, blobs) for group in groups]
        if self.group_size is not None:
            groups = [part_of(group, self.group_size) for group in groups]
        return groups


@dataclass(frozen=True)
class MadeUp:
    """Groups of a shape."""

    shape: "Shape"
    num_groups: int

    def groups(self, model: Path, blobs: BlobStore) -> list[TrajectoryGroup]:
        """The groups; their images are put into `blobs`."""
        from transformers import AutoTokenizer

        builder = GroupBuilder(AutoTokenizer.from_pretrained(model), blobs)
        return [shaped_group(builder, seed, self.shape) for seed in range(self.num_groups)]


def with_view(group: TrajectoryGroup, side_px: int, blobs: BlobStore) -> TrajectoryGroup:
    """A group as if it had been shown a square view of this side."""
    shown = next(span for span in group.prompt if isinstance(span, ImageSpan))
    start, pad, *_, end = shown.token_ids
    size = ImageSize(side_px, side_px)
    with Image.open(io.BytesIO(blobs.get(shown.image))) as image:
        larger = blobs.put(encode_png(image.resize((side_px, side_px))))
    tokens = [start, *[pad] * size.num_image_tokens, end]
    view = ImageSpan(token_ids=tokens, image=larger, size=size)
    prompt = [view if span is shown else span for span in group.prompt]
    return msgspec.structs.replace(group, prompt=prompt, view_size=size)


def part_of(group: TrajectoryGroup, group_size: int) -> TrajectoryGroup:
    """Some of its trajectories: branches in turn, with those they stem from, then bases."""
    by_id = {trajectory.trajectory_id: trajectory for trajectory in group.trajectories}
    branches = [t for t in group.trajectories if t.parent_id is not None]
    kept: set[str] = set()
    for trajectory in [*branches, *group.trajectories]:
        line = _line_of(trajectory, by_id) - kept
        if len(kept) + len(line) <= group_size:
            kept |= line
    chosen = [t for t in group.trajectories if t.trajectory_id in kept]
    return msgspec.structs.replace(group, trajectories=chosen)


def _line_of(trajectory: Trajectory, by_id: dict[str, Trajectory]) -> set[str]:
    """A trajectory and all it stems from."""
    line = {trajectory.trajectory_id}
    while trajectory.parent_id is not None:
        trajectory = by_id[trajectory.parent_id]
        line.add(trajectory.trajectory_id)
    return line


@dataclass(frozen=True)
class Shape:
    """What made-up groups look like."""

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
        plain,
        prompt=prompt,
        view_size=view.size,
        trajectories=[*bases, *branches],
    )


def training_samples(group: TrajectoryGroup, limits: ModelLimits) -> list[TrainingSample]:
    """The samples of a group, with made-up advantages.

    A part of a group may have none, and where a branch wrote what its parent wrote, advantages of
    the same size leave nothing of their gradients to compare.
    """
    advantages = np.random.default_rng(1).normal(size=len(group.trajectories)).tolist()
    return build_samples(group, advantages, limits)


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
