"""What a case tells while it runs: the `data` of `GET /v1/cases/{id}/events`.

A stream is `started`, then of every trajectory `turn` (with `uncertainty` and `zoom` where it
called the tool) until its `trajectory`, then `verification` where it was asked for, then `answer`
or `error`, then `done`, which is always last. A case that is begun again tells `started` again;
what it told before is then void. Boxes are in original-image pixels, entropies in nats.

While a case may still come to withhold its answer, and after it did, `thought` and `answer` of
its events are empty, unless the stream is asked to show what is withheld.
"""

from typing import Literal

from pydantic import Field

from shared.api.base import SHA256_PATTERN, WireModel
from shared.api.case_course import Coordinates
from shared.api.case_result import Blanked
from shared.api.clinic import AbstentionReason, CaseStatus
from shared.api.zoom import WireBox, WireWindow


class StartedEvent(WireModel):
    """Work on the case begins; trajectories told of before, if any, no longer count."""

    event: Literal["started"] = "started"
    num_trajectories: int
    """K."""


class TurnEvent(WireModel):
    """A trajectory wrote a turn, and its call, if it made one, was answered."""

    event: Literal["turn"] = "turn"
    trajectory_id: str
    turn: int
    """Index of the turn in its trajectory."""
    thought: str
    """The text inside <think>; empty if the policy wrote none."""
    mean_entropy_nats: float
    """Mean H_t over the tokens of the turn; 0 for an empty turn."""
    num_tokens: int
    answer: str | None = None
    """As written, in the turn that gave one."""
    call_error: str | None = None
    """What the policy was told instead of a crop."""


class UncertaintyEvent(WireModel):
    """How sure the policy was of what it asked to see."""

    event: Literal["uncertainty"] = "uncertainty"
    trajectory_id: str
    turn: int
    baseline_entropy_nats: float
    """H_base of the trajectory."""
    tool_entropy_nats: float
    """H_tool of this call."""
    entropy_increase_nats: float
    """ΔH = H_tool − H_base."""


class ZoomEvent(WireModel):
    """The policy was shown a crop, or the whole image in another window."""

    event: Literal["zoom"] = "zoom"
    trajectory_id: str
    turn: int
    tool: str = "zoom_in"
    """What it called: `zoom_in` or `set_window`."""
    window: WireWindow | None = None
    """The grey-level window it is shown in; null: the image's own."""
    box: WireBox
    """As cropped, original pixels, half-open; of `set_window` the whole image."""
    box_normalised: Coordinates
    """[x1, y1, x2, y2] as fractions of the image's width and height."""
    crop: str = Field(pattern=SHA256_PATTERN)
    crop_url: str
    crop_width_px: int
    """As shown to the policy."""
    crop_height_px: int


class TrajectoryEvent(WireModel):
    """A trajectory ended."""

    event: Literal["trajectory"] = "trajectory"
    trajectory_id: str
    answer: str | None = None
    """As written."""
    stop_reason: str
    num_turns: int


class VerificationEvent(WireModel):
    """The question is being asked again without a region, or has been."""

    event: Literal["verification"] = "verification"
    blanked: Blanked
    state: Literal["asking", "asked"]
    changed: bool | None = None
    """Whether the majority gave another answer; null while it is being asked."""


class AnswerEvent(WireModel):
    """What the trajectories say together: an answer, or why none is given."""

    event: Literal["answer"] = "answer"
    answer: str | None = None
    """The letter where there are choices; null where the case abstains."""
    option_text: str | None = None
    abstention: AbstentionReason | None = None
    agreement: float | None = None
    confidence: float | None = None
    """The calibrated probability that the answer is right; null where it is not known."""
    supported: bool | None = None
    """By the evidence shown; null unless that was verified."""


class ErrorEvent(WireModel):
    """The case failed."""

    event: Literal["error"] = "error"
    service: Literal["policy", "zoom", "cca", "clinic"]
    reason: str


class DoneEvent(WireModel):
    """The last event: the case is final and can be read whole."""

    event: Literal["done"] = "done"
    status: CaseStatus


CaseEvent = (
    StartedEvent
    | TurnEvent
    | UncertaintyEvent
    | ZoomEvent
    | TrajectoryEvent
    | VerificationEvent
    | AnswerEvent
    | ErrorEvent
    | DoneEvent
)
