"""Groups as trees of tokens: what trajectories share is there once.

All trajectories of a group share the prompt with its image, and a branch shares everything up to
its fork. What is shared is read off the fork record (`TrainingSample.lineage`), never off equal
tokens. The tokens of a tree lie depth first, so that a subtree is a run of tokens: token q sees k
if k ≤ q < subtree_end[k], and several trees in a row never see each other. Positions are those
that a token has on its path.

Only the forward pass is deduplicated. Log-probabilities of the distinct tokens are gathered into
every trajectory that holds them, the loss is per trajectory, and autograd adds up: the gradient is
that of trajectories computed one by one.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.trainer.sample import TrainingSample, shared_tokens
from shared.geometry import PATCH_FACTOR_PX
from shared.trajectory import ImageSpan

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Node:
    """Consecutive tokens without a fork inside."""

    start: int
    """First token, as the tree lies."""
    end: int
    """One past the last."""
    parent: int | None
    """Index of the node before it on its path; None for a root."""


@dataclass(frozen=True, slots=True)
class TokenTree:
    """Distinct tokens of some trajectories of one group, depth first."""

    samples: list[TrainingSample]
    nodes: list[Node]
    """Parents before children."""
    input_ids: list[int]
    positions_3L: Ints
    """mRoPE: time, row, column of each token on its path."""
    subtree_end: list[int]
    """One past the last token that sees this one."""
    images: list[ImageSpan]
    """Shown images in the order of their placeholders."""
    paths: list[Ints]
    """For every sample, where each of its tokens lies."""

    @property
    def num_tokens(self) -> int:
        """Distinct tokens."""
        return len(self.input_ids)


def build_tree(samples: Sequence[TrainingSample], image_token_id: int) -> TokenTree:
    """The tree of trajectories of one group, or of some of them."""
    return _Layout(samples, image_token_id).tree()


def num_new_tokens(samples: Sequence[TrainingSample]) -> list[int]:
    """Tokens of each sample that none before it has: a tree of the first n has their sum."""
    return [
        len(sample.input_ids)
        - max((shared_tokens(sample, earlier) for earlier in samples[:index]), default=0)
        for index, sample in enumerate(samples)
    ]


def rope_positions(sample: TrainingSample, image_token_id: int) -> Ints:
    """Time, row and column of every token of a trajectory, as Qwen2.5-VL counts them (3, T).

    Text advances all three by one. An image stands still in time while its rows and columns
    advance from there; what follows begins one past the largest of them.
    """
    is_image_T = np.array(sample.input_ids) == image_token_id
    positions_3T = np.empty((3, len(is_image_T)), dtype=np.int64)
    at = following = 0
    for start, span in zip(image_starts(sample, image_token_id), sample.images, strict=True):
        rows = span.size.height_px // PATCH_FACTOR_PX
        columns = span.size.width_px // PATCH_FACTOR_PX
        positions_3T[:, at:start] = following + np.arange(start - at)
        following += start - at
        at = start + rows * columns
        positions_3T[0, start:at] = following
        positions_3T[1, start:at] = following + np.repeat(np.arange(rows), columns)
        positions_3T[2, start:at] = following + np.tile(np.arange(columns), rows)
        following += max(rows, columns)
    positions_3T[:, at:] = following + np.arange(len(is_image_T) - at)
    return positions_3T


def image_starts(sample: TrainingSample, image_token_id: int) -> list[int]:
    """Index of the first placeholder of each shown image."""
    placeholders = np.flatnonzero(np.array(sample.input_ids) == image_token_id)
    before = np.cumsum([0, *(span.size.num_image_tokens for span in sample.images)])[:-1]
    starts: list[int] = placeholders[before].tolist()
    return starts


class _Layout:
    """Lays trajectories out depth first; each token belongs to the first sample that has it."""

    def __init__(self, samples: Sequence[TrainingSample], image_token_id: int) -> None:
        self._samples = list(samples)
        self._positions = [rope_positions(s, image_token_id) for s in samples]
        self._image_starts = [image_starts(s, image_token_id) for s in samples]
        self._forks = self._find_forks()
        self._nodes: list[Node] = []
        self._input_ids: list[int] = []
        self._placed: list[Ints] = []
        self._subtree_end: list[int] = []
        self._images: list[ImageSpan] = []
        self._paths = [np.empty(len(s.input_ids), dtype=np.int64) for s in samples]

    def tree(self) -> TokenTree:
        """Lay the first sample out, and with it whatever forks from it."""
        self._lay(0, 0, None)
        return TokenTree(
            samples=self._samples,
            nodes=self._nodes,
            input_ids=self._input_ids,
            positions_3L=np.concatenate(self._placed, axis=1),
            subtree_end=self._subtree_end,
            images=self._images,
            paths=self._paths,
        )

    def _find_forks(self) -> dict[int, dict[int, list[int]]]:
        """By sample and place: which samples leave it there with tokens of their own."""
        forks: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        own_from: list[tuple[int, int]] = [(0, 0)]  # whom it leaves, and where
        for index in range(1, len(self._samples)):
            shared = [shared_tokens(self._samples[index], s) for s in self._samples[:index]]
            place = max(shared)
            whom = shared.index(place)
            while place <= own_from[whom][1]:  # it has that token from another
                whom = own_from[whom][0]
            own_from.append((whom, place))
            forks[whom][place].append(index)
        return forks

    def _lay(self, index: int, start: int, parent: int | None) -> None:
        """A sample's tokens from `start` on up to the next fork, then all that goes on there."""
        length, forks = len(self._samples[index].input_ids), self._forks[index]
        end = min((place for place in forks if place > start), default=length)
        first, node = len(self._input_ids), parent
        if end > start:
            node = len(self._nodes)
            self._place(index, start, end, parent)
        if end < length:
            self._lay(index, end, node)
        for child in forks.get(end, ()):
            self._paths[child][:end] = self._paths[index][:end]
            self._lay(child, end, node)
        num_placed = end - start
        self._subtree_end[first : first + num_placed] = [len(self._input_ids)] * num_placed

    def _place(self, index: int, start: int, end: int, parent: int | None) -> None:
        sample, first = self._samples[index], len(self._input_ids)
        last = first + end - start
        self._nodes.append(Node(first, last, parent))
        self._input_ids += sample.input_ids[start:end]
        self._placed.append(self._positions[index][:, start:end])
        self._subtree_end += [0] * (end - start)
        self._paths[index][start:end] = np.arange(first, last)
        self._images += [
            span
            for at, span in zip(self._image_starts[index], sample.images, strict=True)
            if start <= at < end
        ]
