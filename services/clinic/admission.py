"""From what was asked and what zoom found to what may be kept: no identity passes this point.

The identity of a file is known here, goes into the database of pseudonyms, and is dropped. What
the case keeps, the policy is sent and the events tell is the text without it, and pseudonyms.
"""

from http import HTTPStatus

import msgspec

from services.clinic.pseudonyms import Pseudonyms
from services.clinic.scrubbing import without_identity
from services.clinic.submission import Submission
from shared.api.clinic import CaseImage, CaseSubject
from shared.api.headers import PatientIdentity
from shared.api.zoom import IngestResponse
from shared.errors import ApiProblem

_NOBODY = PatientIdentity()


class Admitted(msgspec.Struct, frozen=True, kw_only=True):
    """A question without identity, and whom it is about."""

    question: str
    choices: list[str]
    subject: CaseSubject


def admit(
    submission: Submission, identity: PatientIdentity | None, pseudonyms: Pseudonyms
) -> Admitted:
    """Take identity out of the texts and put pseudonyms in its place.

    Raises `ApiProblem` 422 if choices differ in nothing but identity.
    """
    identity = identity or _NOBODY
    question, num_removed = without_identity(submission.question, identity)
    choices: list[str] = []
    for choice in submission.choices:
        text, num_in_choice = without_identity(choice, identity)
        choices.append(text)
        num_removed += num_in_choice
    if len({choice.casefold() for choice in choices}) < len(choices):
        raise ApiProblem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "Choices repeat",
            "two choices have the same text once the patient's identity is removed from them; "
            "each must differ",
        )
    subject = pseudonyms.of(identity).model_copy(update={"num_removed": num_removed})
    return Admitted(question=question, choices=choices, subject=subject)


def case_image(case_id: str, ingested: IngestResponse) -> CaseImage:
    """The picture as a case shows it: all that zoom said of the file but whom it shows."""
    return CaseImage(
        url=f"/v1/cases/{case_id}/image",
        sha256=ingested.image,
        width_px=ingested.width_px,
        height_px=ingested.height_px,
        source_format=ingested.source_format,
        window_center=ingested.window_center,
        window_width=ingested.window_width,
        rendering=ingested.rendering,
        preprocessing_version=ingested.preprocessing_version,
        header=ingested.header,
        deidentification=ingested.deidentification,
    )
