"""Wire models of the CCA scorer: the reward of a whole group, and consensus at inference."""

from enum import StrEnum

from pydantic import Field

from shared.api.base import WireModel
from shared.api.zoom import WireBox, WireImageSize
from shared.problem import AnswerKind

MAX_OPTIONS = 26
"""Options are lettered A to Z."""


class ToolRewardArm(StrEnum):
    """How R_tool is given (METHOD.md, CCA, Arms)."""

    CCA = "cca"
    GATED = "gated"
    """CCA off: 0.5 for any correct trajectory that zoomed."""
    UNCONDITIONAL = "unconditional"
    """0.5 for any zoom."""
    NONE = "none"


class ScoredAttempt(WireModel):
    """What the scorer needs to know of one trajectory."""

    trajectory_id: str
    answer: str | None
    is_well_formed: bool
    all_calls_parsed: bool
    boxes: list[WireBox] = []
    """As cropped, original pixels."""


class RewardSettings(WireModel):
    """The knobs of METHOD.md's reward, with its defaults."""

    arm: ToolRewardArm = ToolRewardArm.CCA
    iou_threshold: float = Field(default=0.5, ge=0.0, le=1.0)
    """η, strict."""
    no_zoom_tool_reward: float = Field(default=0.0, ge=0.0, le=1.0)
    """For a correct trajectory that never zoomed; the paper's words give 0.5 (METHOD.md, ours)."""
    format_penalty: float = Field(default=-0.2, le=0.0)


class ScoreRequest(WireModel):
    """`POST /v1/score`."""

    gold_answer: str = Field(min_length=1)
    answer_kind: AnswerKind
    options: list[str] = Field(default=[], max_length=MAX_OPTIONS)
    image_size: WireImageSize
    attempts: list[ScoredAttempt] = Field(min_length=1, max_length=1024)
    settings: RewardSettings = RewardSettings()
    heatmap: bool = False


class WireReward(WireModel):
    """One trajectory's reward and its parts."""

    trajectory_id: str
    accuracy: float
    format: float
    tool: float
    total: float
    consensus_iou: float


class ConsensusRegion(WireModel):
    """M̂: where a strict majority of the agreeing trajectories looked."""

    num_agreeing: int
    """|T⁺|."""
    rectangles: list[WireBox]
    """Disjoint, sorted by (y1, x1)."""
    area_px: int
    rle: list[int]
    """Run lengths over the row-major mask of the image, starting with zeros (uncompressed COCO
    order transposed: rows, not columns)."""


class Heatmap(WireModel):
    """C(u, v) as an 8-bit PNG (count scaled to 255 = |T⁺|), at most 512 px a side."""

    png_base64: str
    max_count: int
    width_px: int
    height_px: int


class ScoreResponse(WireModel):
    """Rewards in the order of the attempts."""

    rewards: list[WireReward]
    consensus: ConsensusRegion
    heatmap: Heatmap | None = None


class ConsensusAttempt(WireModel):
    """One of K trajectories at inference; there is no gold answer."""

    trajectory_id: str
    answer: str | None
    boxes: list[WireBox] = []


class ConsensusRequest(WireModel):
    """`POST /v1/consensus` (METHOD.md, At inference)."""

    answer_kind: AnswerKind
    options: list[str] = Field(default=[], max_length=MAX_OPTIONS)
    image_size: WireImageSize
    attempts: list[ConsensusAttempt] = Field(min_length=1, max_length=256)
    heatmap: bool = False


class ConsensusOutcome(StrEnum):
    """Whether the K trajectories agree on an answer."""

    AGREED = "agreed"
    TIED = "tied"
    """Two answers are equally frequent: abstain."""
    UNANSWERED = "unanswered"
    """Nobody answered: abstain."""
    UNCOMMITTED = "uncommitted"
    """The modal answer names no option (or neither yes nor no): "I cannot tell". Abstain."""


class AttemptConsensus(WireModel):
    """One of the K trajectories beside the others."""

    trajectory_id: str
    answer: str | None
    """Normalised; null if it gave none."""
    agrees: bool
    """Whether it is in T⁺: the outcome is `agreed` and this answer is the modal one."""
    consensus_iou: float
    """IoU(M_j, M̂); 0 when either is empty."""


class ConsensusResponse(WireModel):
    """The modal answer and the region behind it."""

    outcome: ConsensusOutcome
    answer: str | None
    """Modal normalised answer; None unless agreed."""
    agreement: float
    """Share of the K trajectories that gave the modal answer."""
    votes: dict[str, int]
    """Normalised answer → count; unanswered ones are not in it."""
    shown_trajectory_id: str | None
    """The modal trajectory of highest IoU with the consensus."""
    attempts: list[AttemptConsensus]
    """In the order of the request."""
    consensus: ConsensusRegion
    heatmap: Heatmap | None = None
