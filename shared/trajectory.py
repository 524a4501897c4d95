"""What a policy did: spans, turns, trajectories, and the group of them that is trained together.

These structs are the bytes on the stream (msgpack) and the records evaluation writes. A
trajectory is self-contained: a branch carries its whole inherited prefix, so that any one of them
can be trained, replayed or shown alone. `forked_at_*` says what was inherited; merging shared
prefixes goes by that record, never by equal tokens.

Token order of a trajectory: the group's `prompt` spans, then for each turn its sampled tokens and
its observation spans. Only sampled tokens carry a loss.
"""

from collections.abc import Iterator
from enum import StrEnum

import msgspec

from shared.errors import PayloadError
from shared.geometry import Box, ImageSize
from shared.problem import AnswerKind

SCHEMA_VERSION = 1

MAX_GROUP_BYTES = 64 * 2**20
"""Largest group that is decoded; one of 256 long trajectories has about half of it."""


class StopReason(StrEnum):
    """Why a trajectory ended."""

    ANSWERED = "answered"
    MAX_TURNS = "max_turns"
    TURN_TOKEN_LIMIT = "turn_token_limit"
    """A turn reached its token limit without a stop."""
    NO_TOOL_NO_ANSWER = "no_tool_no_answer"
    """The policy ended its turn (end-of-sequence) with neither call nor answer."""
    CONTEXT_FULL = "context_full"
    """The next observation did not fit; it was dropped whole."""


class ForkOrigin(StrEnum):
    """Where a trajectory comes from (METHOD.md, EVR)."""

    BASE = "base"
    DRAWN = "drawn"
    """A fork drawn with probability P."""
    FILLED = "filled"
    """A fork made to use up the budget, in descending entropy increase."""
    FRESH = "fresh"
    """An extra base trajectory: nobody had called the tool."""


class TextSpan(msgspec.Struct, frozen=True, tag="text"):
    """Text the policy was shown, as the policy server tokenised it."""

    token_ids: list[int]


class ImageSpan(msgspec.Struct, frozen=True, tag="image"):
    """An image the policy was shown: vision start, one placeholder per image token, vision end."""

    token_ids: list[int]
    image: str
    """sha256 of the PNG exactly as shown."""
    size: ImageSize
    """As shown; sides are multiples of 28."""


Span = TextSpan | ImageSpan


class VersionSpan(msgspec.Struct, frozen=True, array_like=True):
    """`num_tokens` consecutive sampled tokens came from policy version `version`."""

    version: int
    num_tokens: int


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """What the policy sampled in one turn; all lists have one entry per token."""

    token_ids: list[int]
    token_texts: list[str]
    """Their concatenation is the turn's text; a token that ends no character has an empty text."""
    sampled_logprobs: list[float]
    """ln μ of the sampled token under the engine's distribution, nats."""
    entropies_nats: list[float]
    """H_t of the temperature-1 distribution the token was drawn from (METHOD.md, EVR)."""
    version_spans: list[VersionSpan]
    stop: str | None
    """The stop string that ended the turn; None for end-of-sequence or the token limit."""
    hit_token_limit: bool = False

    @property
    def text(self) -> str:
        """The turn's text."""
        return "".join(self.token_texts)


class ForkDecision(msgspec.Struct, frozen=True, kw_only=True):
    """One EVR draw at one call: kept whatever came of it, so that a rollout can be replayed."""

    tool_entropy_nats: float
    """H_tool."""
    entropy_increase_nats: float
    """ΔH_tool = H_tool − H_base."""
    is_candidate: bool
    probability: float
    """P = clip(P_base + γ·ΔH_tool, 0, 1); 0 when not a candidate."""
    draw: float
    """Uniform [0, 1), seeded by (trajectory id, index of the call)."""
    branched: bool
    """Whether the drawing pass started a branch here."""


Bbox = tuple[float, float, float, float]
"""x1, y1, x2, y2."""


class WindowArguments(msgspec.Struct, frozen=True):
    """A grey-level window, as `set_window` takes it: in units after rescaling (CT: HU)."""

    center: float
    width: float


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """One tool call as the policy wrote it, and what became of it."""

    index: int
    """Running number of the call in its trajectory, from 0."""
    tool: str | None = "zoom_in"
    """Name of the tool; None if the call did not parse."""
    first_coordinate_token: int | None
    """Index within the turn's tokens of the token in which the first argument begins (a window's
    center or width counts as one); None if the call did not parse."""
    end_token: int | None
    """One past the token in which the last argument ends (a box: its closing bracket); None if
    the call did not parse."""
    bbox_2d: Bbox | None
    """As written: pixels of the view. None if it did not parse or was no zoom."""
    box: Box | None
    """As cropped: original pixels. None if nothing was cropped."""
    window: WindowArguments | None = None
    """What the picture is shown in: as written by `set_window`, in force at a `zoom_in`; None: as
    the original is."""
    crop: ImageSpan | None
    """The picture shown; None when the call was bad or the observation did not fit."""
    error: str | None
    """The error the policy was told instead of a picture."""
    fork: ForkDecision | None
    """The EVR record; None where EVR did not look (serving, evaluation, resampled calls)."""


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One generation and what the environment answered."""

    generation: Generation
    call: ToolCall | None = None
    observation: list[Span] = msgspec.field(default_factory=list)


class FormatFacts(msgspec.Struct, frozen=True):
    """What the format reward looks at (METHOD.md, Reward)."""

    is_well_formed: bool
    """think / tool_call / answer well formed in every turn."""
    all_calls_parsed: bool
    """Every call parsed and named a croppable box."""
    has_answer: bool


class RewardBreakdown(msgspec.Struct, frozen=True, kw_only=True):
    """R(T) and its parts (METHOD.md, Reward and CCA); computed by the cca service alone."""

    accuracy: float
    format: float
    tool: float
    """1[R_acc > 0]·R_tool as added to the total (not gated in the *unconditional* arm)."""
    total: float
    consensus_iou: float
    """IoU(M_j, M̂); 0 when either is empty."""


class Trajectory(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt at a problem."""

    trajectory_id: str
    origin: ForkOrigin
    parent_id: str | None = None
    forked_at_turn: int | None = None
    """Turn of the parent in which the branch was cut; turns before it are inherited."""
    forked_at_token: int | None = None
    """Tokens of that turn that are inherited."""
    seed: int
    turns: list[Turn]
    stop_reason: StopReason
    answer: str | None
    format_facts: FormatFacts
    baseline_entropy_nats: float
    """H_base."""
    reward: RewardBreakdown | None = None

    @property
    def boxes(self) -> list[Box]:
        """Boxes as cropped whose crop was shown: the mask M_i of CCA."""
        return [
            turn.call.box
            for turn in self.turns
            if turn.call is not None and turn.call.box is not None and turn.call.crop is not None
        ]

    @property
    def num_sampled_tokens(self) -> int:
        """Tokens the policy wrote, inherited ones included."""
        return sum(len(turn.generation.token_ids) for turn in self.turns)

    @property
    def oldest_version(self) -> int:
        """The oldest policy version that sampled one of its tokens."""
        return min(s.version for turn in self.turns for s in turn.generation.version_spans)

    @property
    def newest_version(self) -> int:
        """The newest policy version that sampled one of its tokens."""
        return max(s.version for turn in self.turns for s in turn.generation.version_spans)


class TrajectoryGroup(msgspec.Struct, frozen=True, kw_only=True):
    """The scored attempts at one problem: the unit of training and of delivery."""

    schema_version: int
    """Always written: a payload without one is of no version."""
    group_id: str
    """Deterministic: run, round and problem (`make_group_id`)."""
    run: str
    problem_id: str
    round: int
    """Index of the pass over the problem set."""
    image: str
    """sha256 of the original."""
    image_size: ImageSize
    """Of the original."""
    view_size: ImageSize
    answer_kind: AnswerKind
    prompt: list[Span]
    """Shared by all trajectories."""
    trajectories: list[Trajectory]
    consensus: list[Box]
    """M̂ as disjoint rectangles."""
    arm: str
    """Reward arm and branching arm it was made under, for reports."""
    rollout_seconds: float

    @property
    def oldest_version(self) -> int:
        """The oldest policy version in the group: staleness is counted from it."""
        return min(t.oldest_version for t in self.trajectories)

    @property
    def newest_version(self) -> int:
        """The newest policy version in the group: none is newer than the trainer's step."""
        return max(t.newest_version for t in self.trajectories)


def make_group_id(run: str, round_index: int, problem_id: str) -> str:
    """The deterministic id of a group."""
    return f"{run}:{round_index}:{problem_id}"


def spans_of(prompt: list[Span], trajectory: Trajectory) -> Iterator[Span | Generation]:
    """All spans of a trajectory in token order; a `Generation` is what the policy wrote."""
    yield from prompt
    for turn in trajectory.turns:
        yield turn.generation
        yield from turn.observation


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(TrajectoryGroup)


def encode_group(group: TrajectoryGroup) -> bytes:
    """The group as it travels on the stream."""
    return _encoder.encode(group)


def decode_group(payload: bytes) -> TrajectoryGroup:
    """A group off the stream, validated. Raises `PayloadError` naming what is wrong."""
    if len(payload) > MAX_GROUP_BYTES:
        raise PayloadError(f"{len(payload)} bytes; groups of at most {MAX_GROUP_BYTES} are read")
    try:
        group = _decoder.decode(payload)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise PayloadError(f"not a trajectory group: {error}") from error
    if group.schema_version != SCHEMA_VERSION:
        raise PayloadError(
            f"schema_version {group.schema_version}, this trainer reads {SCHEMA_VERSION}"
        )
    if not group.trajectories:
        raise PayloadError(f"group {group.group_id} has no trajectories")
    for trajectory in group.trajectories:
        _check(group.group_id, trajectory)
    return group


def _check(group_id: str, trajectory: Trajectory) -> None:
    """One entry per token in every list, at least one turn, a reward."""
    where = f"group {group_id}, trajectory {trajectory.trajectory_id}"
    if trajectory.reward is None:
        raise PayloadError(f"{where}: not scored")
    if not trajectory.turns:
        raise PayloadError(f"{where}: no turns")
    for turn in trajectory.turns:
        generation = turn.generation
        if any(s.num_tokens < 0 or s.version < 0 for s in generation.version_spans):
            raise PayloadError(f"{where}: version_spans hold a negative number")
        num_tokens = len(generation.token_ids)
        lengths = {
            "token_texts": len(generation.token_texts),
            "sampled_logprobs": len(generation.sampled_logprobs),
            "entropies_nats": len(generation.entropies_nats),
            "version_spans": sum(s.num_tokens for s in generation.version_spans),
        }
        for name, length in lengths.items():
            if length != num_tokens:
                raise PayloadError(f"{where}: {name} covers {length} of {num_tokens} tokens")
