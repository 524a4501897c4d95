"""Wire models of the clinic API: a case is one question about one image, answered with evidence.

A case is stored before any work is done for it, as `running`, and ends in exactly one of the
final statuses. Everything a viewer draws is in the case itself or behind one of its URLs; boxes
are in original-image pixels, entropies in nats.
"""

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import Field

from shared.api.base import SHA256_PATTERN, WireModel
from shared.api.case_course import CaseAttempt, CaseConsensus, CaseContext, CaseEvidence, CaseTurn
from shared.api.case_result import (
    CalibrationName,
    CaseLinks,
    CaseProvenance,
    CaseVerification,
    UnknownConfidence,
)
from shared.api.headers import Deidentification, ImageHeader
from shared.api.zoom import AppliedRendering, WindowChoice

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
