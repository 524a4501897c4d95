"""What made an answer: versions and digests of everything that took part. Pure but for one look.

The prompt's version is a digest of its wording, taken with marks in place of question, choices
and boxes, so that no change of a word can be forgotten; so is a tool's, of its declaration and of
what is said of its pictures and of bad arguments.
"""

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.metadata import Distribution, distribution

import msgspec

from shared.agent.prompt import (
    error_observation,
    observation_after_image,
    observation_before_image,
    prompt_after_image,
    prompt_before_image,
)
from shared.agent.tools import TOOLS, ZOOM_IN, zoom_caption
from shared.api.case_result import CaseProvenance
from shared.api.clinic import Case
from shared.api.policy import PolicyDescription

TOP_P = 1.0
"""Nothing is truncated: METHOD.md, The agent."""


@cache
def prompt_sha256() -> str:
    """Digest of the prompt's wording, around one tool; each tool has a digest of its own."""
    wording = [
        prompt_before_image((ZOOM_IN,)),
        prompt_after_image("{question}", ["{choice}", "{choice}"]),
        observation_before_image(),
        observation_after_image(zoom_caption([0, 0, 0, 0])),
        error_observation("{error}"),
    ]
    return hashlib.sha256(msgspec.json.encode(wording)).hexdigest()


@cache
def tool_sha256(tool: str) -> str:
    """Digest of all that a policy is told of a tool."""
    known = TOOLS[tool]
    wording = [known.schema, known.usage, known.caption]
    return hashlib.sha256(msgspec.json.encode(wording)).hexdigest()


@cache
def code_version(revision: str) -> str:
    """Version of the package; with the revision it was built or installed from, where known."""
    package = distribution("medvr")
    revision = revision or _installed_revision(package)
    return f"{package.version}+{revision}" if revision else package.version


def _installed_revision(package: Distribution) -> str:
    """The commit an installer noted down (PEP 610); empty if it noted none."""
    noted = package.read_text("direct_url.json")
    if noted is None:
        return ""
    return str(msgspec.json.decode(noted).get("vcs_info", {}).get("commit_id", ""))


def weights_of(description: PolicyDescription, versions: Sequence[int]) -> str | None:
    """Digest of the weights that answered; None if they are not those described, or unknown."""
    return description.weights_sha256 if list(versions) == [description.version] else None


def provenance_of(
    case: Case,
    description: PolicyDescription,
    versions: list[int],
    *,
    code: str,
    calibration_id: str | None,
) -> CaseProvenance:
    """Of a case whose trajectories have ended."""
    return CaseProvenance(
        model=description.model,
        run=description.run,
        versions=versions,
        weights_sha256=weights_of(description, versions),
        engine=f"vllm {description.vllm_version}",
        prompt_sha256=prompt_sha256(),
        tools={tool: tool_sha256(tool) for tool in description.tools},
        preprocessing_version=case.image.preprocessing_version,
        code_version=code,
        temperature=case.settings.temperature,
        top_p=TOP_P,
        num_trajectories=case.settings.num_trajectories,
        seed=case.settings.seed,
        max_turns=description.max_turns,
        max_turn_tokens=case.settings.max_turn_tokens,
        calibration_id=calibration_id,
    )
