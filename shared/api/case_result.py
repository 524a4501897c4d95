"""What a case's result is made of beside its answer: confidence, verification, provenance, links.

Each part is null in a case that did not come so far, or that an earlier version of the clinic
wrote. Boxes are in original-image pixels, probabilities between 0 and 1.
"""

from datetime import date
from enum import StrEnum

from pydantic import Field

from shared.api.base import SHA256_PATTERN, WireModel
from shared.api.zoom import WireBox


class UnknownConfidence(StrEnum):
    """Why nobody can say how probably an answer is right."""

    NOT_CALIBRATED = "not_calibrated"
    """The clinic has no calibration (`medvr clinic calibrate`)."""
    NOT_ANSWERED = "not_answered"
    """The trajectories agree on no answer."""
    OTHER_WEIGHTS = "other_weights"
    """The calibration was fitted with other weights, or more than one version answered."""
    OTHER_NUM_TRAJECTORIES = "other_num_trajectories"
    """The calibration was fitted with another K."""
    OTHER_PROMPT = "other_prompt"
    """The calibration was fitted with another wording of the prompt, or the question follows
    others, which those of a calibration do not."""


class CalibrationName(WireModel):
    """Which calibration a confidence comes from: what it was fitted on, and with what."""

    calibration_id: str = Field(pattern=SHA256_PATTERN)
    """sha256 of the calibration's file."""
    problem_set: str
    """Name of the problem set whose right and wrong answers it was fitted on."""
    problem_set_sha256: str = Field(pattern=SHA256_PATTERN)
    num_problems: int
    """Of the set, fitted on or held out."""
    num_trajectories: int
    """K."""
    weights_sha256: str = Field(pattern=SHA256_PATTERN)
    """Of the policy it was fitted with."""
    prompt_sha256: str = Field(pattern=SHA256_PATTERN)
    fitted_on: date


class CaseProvenance(WireModel):
    """Everything that made the answer: enough to make it again, or to say why it differs."""

    model: str
    run: str
    """Training run the weights come from."""
    versions: list[int]
    """Every policy version that sampled a token of the answer, ascending; usually one."""
    weights_sha256: str | None = Field(default=None, pattern=SHA256_PATTERN)
    """Null if more than one version answered, or if the checkpoint was named on a hub."""
    engine: str
    """The inference engine and its version."""
    prompt_sha256: str = Field(pattern=SHA256_PATTERN)
    """Of the wording around question, choices and crops."""
    tools: dict[str, str]
    """Tool the policy was told of → sha256 of all that is said of it."""
    preprocessing_version: str | None = None
    """Of the way from the file to the picture."""
    code_version: str
    """Of the clinic; with the revision where it is known."""
    temperature: float
    top_p: float
    num_trajectories: int
    """K."""
    seed: int
    """Those of the K trajectories are derived from it."""
    max_turns: int
    max_turn_tokens: int
    calibration_id: str | None = Field(default=None, pattern=SHA256_PATTERN)
    """Of the calibration the clinic had, whether or not it applied."""


class Blanked(StrEnum):
    """Which region was blanked."""

    EVIDENCE = "evidence"
    ELSEWHERE = "elsewhere"
    """A region of the same shape that does not overlap the evidence."""


class EvidenceRegion(StrEnum):
    """What is taken for the place of the evidence."""

    CONSENSUS = "consensus"
    SHOWN_TRAJECTORY = "shown_trajectory"
    """The boxes of the trajectory shown: no strict majority looked at one place."""


class UnaskedReason(StrEnum):
    """Why the question was not asked again."""

    NO_EVIDENCE = "no_evidence"
    """The trajectory shown looked at nothing, nor did a majority."""
    NOT_BLANKABLE = "not_blankable"
    """The region is the whole image, or larger than zoom blanks."""
    NO_PLACE = "no_place"
    """The image has no room for a second region of this shape, or none was found."""


class BlankedAnswer(WireModel):
    """What the same K trajectories' seeds say of the image without a region."""

    rectangles: list[WireBox]
    """What was blanked: their union, original pixels."""
    area_px: int
    """Of the union."""
    image: str = Field(pattern=SHA256_PATTERN)
    """The image without them."""
    image_url: str
    answer: str | None = None
    """The majority's; null if there is none."""
    option_text: str | None = None
    agreement: float
    votes: dict[str, int]
    changed: bool
    """Whether the majority gave another answer than to the whole image, or none."""


class CaseVerification(WireModel):
    """Is the evidence really why? The question asked again without it (`verify=true`)."""

    region: EvidenceRegion | None = None
    """What was taken for the evidence; null if there was none."""
    evidence_blanked: BlankedAnswer | None = None
    evidence_unasked: UnaskedReason | None = None
    elsewhere_blanked: BlankedAnswer | None = None
    elsewhere_unasked: UnaskedReason | None = None
    supported: bool | None
    """Whether the answer changed without its evidence: false means "not supported by the evidence
    shown". Null if the evidence could not be blanked. If the answer changes without a region
    elsewhere too, it is fragile, and the support is worth less."""


class CaseLinks(WireModel):
    """Where everything about a case is, as paths; null where there is nothing or nothing to do."""

    self: str
    page: str
    """For a browser."""
    events: str
    image: str
    crops: list[str]
    """Of the evidence, in its order."""
    heatmap: str | None = None
    evidence_blanked: str | None = None
    elsewhere_blanked: str | None = None
    cancel: str | None = None
    """POST; only while the case runs."""
    follow_ups: str | None = None
    """POST; only of an answered case."""
    feedback: str
    """GET, and POST once the case has ended."""
    withheld: str | None = None
    """The case with what this reading leaves out."""
