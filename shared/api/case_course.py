"""What the trajectories of a case did: turns, calls, evidence, and what they had been shown before.

Boxes are in original-image pixels, entropies in nats.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from shared.api.base import SHA256_PATTERN, WireModel
from shared.api.zoom import AppliedWindow, WireBox, WireWindow

Coordinates = Annotated[list[float], Field(min_length=4, max_length=4)]


class CaseToolCall(WireModel):
    """A call of a tool as the policy wrote it."""

    tool: str | None = "zoom_in"
    """Its name: `zoom_in` or `set_window`; null if the call could not be read."""
    bbox_2d: Coordinates | None = None
    """As written, in pixels of the view; null if it could not be read or was no zoom."""
    window: WireWindow | None = None
    """`set_window`: as written; `zoom_in`: the one set before; null: the image's own."""
    evidence_index: int | None = None
    """Index into `evidence`; null if no picture was shown."""
    error: str | None = None
    """What the policy was told instead of a picture."""


class CaseTurn(WireModel):
    """One step of the reasoning that is shown."""

    index: int
    thought: str
    """The text inside <think>; empty if the policy wrote none."""
    text: str
    """Everything the policy wrote in this turn, unedited."""
    mean_entropy_nats: float
    """Mean H_t over the tokens of the turn; 0 for an empty turn."""
    num_tokens: int
    call: CaseToolCall | None = None
    answer: str | None = None
    """The answer, in the turn that gave one."""


class CaseEvidence(WireModel):
    """A picture the shown trajectory asked for: where it looked, what it saw, how unsure it was."""

    index: int
    turn: int
    """Index of the turn that asked for it."""
    text_before: str = ""
    """What the policy wrote before the call, in the same turn, unedited."""
    tool: str = "zoom_in"
    """What was called for it: `zoom_in` or `set_window`."""
    window: WireWindow | None = None
    """The grey-level window the policy had set; null: that of the image, in `windows`."""
    box: WireBox
    """As cropped, original pixels, half-open; of `set_window` the whole image."""
    box_normalised: Coordinates
    """[x1, y1, x2, y2] as fractions of the image's width and height."""
    frame: int | None = None
    """Of the file, from 1; null in a case of an earlier version."""
    windows: list[AppliedWindow] = []
    """By which grey values became the levels that were cropped; none where they were levels, or
    where the policy had set a `window`."""
    crop: str = Field(pattern=SHA256_PATTERN)
    crop_url: str
    crop_width_px: int
    """As shown to the policy."""
    crop_height_px: int
    baseline_entropy_nats: float
    """H_base of the trajectory."""
    tool_entropy_nats: float
    """H_tool of this call."""
    entropy_increase_nats: float
    """ΔH = H_tool − H_base: positive where the policy was less sure of its call than before."""


class CaseAttempt(WireModel):
    """One of the K trajectories, in short."""

    trajectory_id: str
    seed: int
    answer: str | None = None
    """As written."""
    stop_reason: str
    num_turns: int
    boxes: list[WireBox]
    """As cropped, original pixels."""
    agrees: bool | None = None
    """Whether it gave the answer of the case; null in a case of an earlier version."""
    consensus_iou: float | None = None
    """IoU of its boxes with the consensus region; 0 when either is empty."""
    answer_token_probability: float | None = None
    """exp of the mean log-probability of the tokens of its answer; null without an answer."""


class CaseConsensus(WireModel):
    """Where a strict majority of the agreeing trajectories looked."""

    num_agreeing: int
    """|T⁺|; 0 when the case abstains."""
    rectangles: list[WireBox]
    """Disjoint, original pixels."""
    area_px: int
    area_share: float
    """Of the image, 0 to 1."""
    heatmap_url: str | None = None
    """PNG of how many agreeing trajectories looked at each place; null if nobody zoomed."""
    heatmap_sha256: str | None = None
    heatmap_max_count: int


class DropReason(StrEnum):
    """Why an earlier question is not in a follow-up's prompt."""

    CONTEXT_FULL = "context_full"
    """The policy's context has no room for it."""
    OTHER_VIEW = "other_view"
    """The policy was shown the image at another size then: its boxes would name other places."""


class ContextCase(WireModel):
    """An earlier case in the prompt: its question, and the turns of its shown trajectory."""

    case_id: str
    num_crops_shown: int
    num_crops_dropped: int
    """For want of room; a text said that they had been shown."""


class DroppedCase(WireModel):
    """An earlier case that is not in the prompt."""

    case_id: str
    reason: DropReason


class CaseContext(WireModel):
    """What of the conversation before a follow-up the policy was shown; oldest first."""

    shown: list[ContextCase]
    dropped: list[DroppedCase]
