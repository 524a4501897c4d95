"""Wire models of the clinic API: a case is one question about one image, answered with evidence.

A case is stored before any work is done for it, as `running`, and ends in exactly one of the
final statuses. Everything a viewer draws is in the case itself or behind one of its URLs; boxes
are in original-image pixels, entropies in nats.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from shared.api.base import SHA256_PATTERN, WireModel
from shared.api.case_result import (
    CalibrationName,
    CaseLinks,
    CaseProvenance,
    CaseVerification,
    UnknownConfidence,
)
from shared.api.headers import Deidentification, ImageHeader
from shared.api.zoom import AppliedRendering, AppliedWindow, WindowChoice, WireBox, WireWindow

RESEARCH_NOTICE = "Research use only. Not a medical device."

KEY_OUTSTANDING = "A request is outstanding for this Idempotency-Key"
"""Title of the problem that is answered to a repetition while the first is at work."""

MAX_TRAJECTORIES = 16
MAX_CHOICES = 26
"""The choices are lettered A to Z."""


class CaseStatus(StrEnum):
    """Where a case stands; all but `running` are final."""

    RUNNING = "running"
    ANSWERED = "answered"
    ABSTAINED = "abstained"
    """No answer is given; `abstention` says why."""
    FAILED = "failed"
    """No statement about the image was reached; `failure` says why."""
    CANCELLED = "cancelled"
    """A caller took the question back before it was answered."""


class AbstentionReason(StrEnum):
    """Why no answer is given although all trajectories ended."""

    TIED = "tied"
    """Two answers are equally frequent."""
    UNANSWERED = "unanswered"
    """No trajectory gave an answer."""
    UNCOMMITTED = "uncommitted"
    """The most frequent answer commits to none of the choices."""
    LOW_CONFIDENCE = "low_confidence"
    """Its confidence is below the clinic's threshold: the answer is withheld."""
    UNSUPPORTED = "unsupported"
    """It is not supported by the evidence shown (`verification`): the answer is withheld."""


class CaseFailure(WireModel):
    """Why a case failed."""

    service: Literal["policy", "zoom", "cca", "clinic"]
    """Which process did not do its part."""
    reason: str


class CaseImage(WireModel):
    """The ingested original."""

    url: str
    sha256: str = Field(pattern=SHA256_PATTERN)
    width_px: int
    height_px: int
    source_format: str
    """Format of the uploaded file: png, jpeg, webp, tiff, dicom or nifti."""
    window_center: float | None = None
    """The window applied to the grey levels, where it was one."""
    window_width: float | None = None
    rendering: AppliedRendering | None = None
    """Frame or slice, and how greys were shown; null in cases from before it was kept."""
    preprocessing_version: str | None = None
    """Of the code that made the picture."""
    header: ImageHeader | None = None
    """DICOM: facts of the header that name nobody."""
    deidentification: Deidentification | None = None


class CaseSubject(WireModel):
    """Whom a case is about, in pseudonyms; the clinic's keeper of them can tell who that is."""

    patient: str | None = None
    """The same for all images whose header has this patient."""
    study: str | None = None
    """The same for all images of a study."""
    header: str | None = None
    """The same for all images whose headers say the same of identity."""
    num_removed: int = 0
    """Places of the question and the choices where a word of the header's identity stood, which
    is `[removed]` now."""


class CaseSettings(WireModel):
    """What the case was asked with: enough, with the policy version, to ask it again."""

    num_trajectories: int = Field(ge=1, le=MAX_TRAJECTORIES)
    """K."""
    seed: int = Field(ge=0)
    """The seeds of the K trajectories are derived from it."""
    temperature: float
    """1 for K > 1 (independent samples), 0 for K = 1 (greedy)."""
    max_turn_tokens: int
    verify: bool = False
    """Ask again with the evidence blanked, and with as much area elsewhere blanked."""
    abstain_below: float = Field(default=0.0, ge=0.0, le=1.0)
    """An answer whose confidence is known and below this is withheld."""
    withhold_unsupported: bool = False
    """Withhold an answer that verification finds unsupported."""


class CasePolicy(WireModel):
    """Who answered."""

    model: str
    run: str
    """Training run the weights come from."""
    versions: list[int]
    """Every policy version that sampled a token of the case, ascending; usually one."""
    view_width_px: int
    """The image as the policy was first shown it."""
    view_height_px: int
    max_turns: int


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


class CaseTimings(WireModel):
    """Seconds per stage; a stage that was not reached took 0."""

    ingest_s: float = 0.0
    waiting_s: float = 0.0
    """For a free slot among the cases worked on together."""
    view_s: float = 0.0
    """The policy's description and the rendering of the view."""
    trajectories_s: float = 0.0
    """All K, side by side."""
    consensus_s: float = 0.0
    evidence_blanked_s: float = 0.0
    """Verification: asking again without the evidence."""
    elsewhere_blanked_s: float = 0.0
    """Verification: asking again without a region elsewhere."""
    total_s: float = 0.0
    """The stages together; of a repeated attempt, its own and the ingest."""


class Case(WireModel):
    """`GET /v1/cases/{id}`: the whole case."""

    case_id: str
    status: CaseStatus
    notice: str = RESEARCH_NOTICE
    created_at: datetime
    """UTC."""
    finished_at: datetime | None = None
    question: str
    choices: list[str]
    image: CaseImage
    subject: CaseSubject = CaseSubject()
    settings: CaseSettings
    follows: str | None = None
    """The case whose conversation this question goes on with; null for a first question."""
    follow_ups: list[str] = []
    """The cases that go on from this one, oldest first."""
    context: CaseContext | None = None
    """Of a follow-up that was answered or abstained: what of the conversation was shown."""
    answer: str | None = None
    """The letter where there are choices, else the shown trajectory's words; null unless answered,
    or withheld and asked for."""
    option_text: str | None = None
    """The text of the choice that was picked."""
    option_probability: float | None = None
    """Share of the K trajectories that picked it; null for an open question."""
    option_probabilities: dict[str, float] = {}
    """Of every choice, by letter; trajectories that picked none are missing from the sum."""
    confidence: float | None = None
    """The calibrated probability that the answer is right; null where it is not known."""
    confidence_unknown: UnknownConfidence | None = None
    """Why it is not."""
    calibration: CalibrationName | None = None
    """What the confidence comes from."""
    abstention: AbstentionReason | None = None
    is_withheld: bool = False
    """There is an answer, and it is left out here with all that gives it away: votes and shares,
    the words of turns and attempts. `links.withheld` shows it."""
    failure: CaseFailure | None = None
    shown_trajectory_id: str | None = None
    """The agreeing trajectory of highest IoU with the consensus; `turns` and `evidence` are its."""
    turns: list[CaseTurn] = []
    evidence: list[CaseEvidence] = []
    agreement: float | None = None
    """Share of the K trajectories that gave the modal answer."""
    votes: dict[str, int] = {}
    """Normalised answer → number of trajectories."""
    mean_answer_token_probability: float | None = None
    """Mean of the agreeing attempts' `answer_token_probability`."""
    consensus: CaseConsensus | None = None
    consensus_iou: float | None = None
    """Of the trajectory shown."""
    verification: CaseVerification | None = None
    """Null unless it was asked for and there was an answer to verify."""
    attempts: list[CaseAttempt] = []
    policy: CasePolicy | None = None
    provenance: CaseProvenance | None = None
    timings: CaseTimings = CaseTimings()
    links: CaseLinks | None = None
    """Always there where a case is sent."""


class CaseSummary(WireModel):
    """A case as a line of a list."""

    case_id: str
    url: str
    status: CaseStatus
    created_at: datetime
    question: str
    answer: str | None = None
    option_text: str | None = None
    abstention: AbstentionReason | None = None
    agreement: float | None = None
    confidence: float | None = None


class FollowUp(WireModel):
    """`POST /v1/cases/{id}/follow-ups`: a further question about the image of a case."""

    question: str = Field(examples=["Is it on the left?"])
    choices: list[str] = Field(default=[], examples=[["yes", "no"]])
    k: int | None = Field(default=None, examples=[5])
    """Number of trajectories."""
    seed: int | None = Field(default=None, examples=[7])
    """Makes the case repeatable."""


class CasePage(WireModel):
    """`GET /v1/cases`: newest first."""

    cases: list[CaseSummary]
    next_url: str | None = None
    """The next page; null on the last."""


class ClinicDescription(WireModel):
    """`GET /v1/clinic`: what this clinic accepts."""

    notice: str = RESEARCH_NOTICE
    default_trajectories: int
    max_trajectories: int = MAX_TRAJECTORIES
    max_choices: int = MAX_CHOICES
    max_choice_chars: int
    max_question_chars: int
    max_upload_bytes: int
    accepted_formats: list[str]
    windows: list[WindowChoice]
    """Names accepted as `window`."""
