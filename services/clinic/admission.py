"""From what was asked and what zoom found to what may be kept: no identity passes this point.

The identity of a file is known here, goes into the database of pseudonyms, and is dropped. What
the case keeps, the policy is sent and the events tell is the text without it, and pseudonyms.
"""

from collections.abc import Sequence
from http import HTTPStatus

import msgspec

from services.clinic.pseudonyms import Pseudonyms, UnknownPseudonym
from services.clinic.scrubbing import without_identity
from services.clinic.submission import Asked
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


def admit(asked: Asked, identity: PatientIdentity | None, pseudonyms: Pseudonyms) -> Admitted:
    """Take identity out of the texts and put pseudonyms in its place.

    Raises `ApiProblem` 422 if choices differ in nothing but identity.
    """
    identity = identity or _NOBODY
    return _without(asked, [identity], pseudonyms.of(identity))


def admit_again(asked: Asked, subject: CaseSubject, pseudonyms: Pseudonyms) -> Admitted:
    """The same for a further question about a known subject.

    Raises `ApiProblem` as `admit`, and 409 if the pseudonyms are of another clinic.
    """
    return _without(asked, _known(subject, pseudonyms), subject)


def unnamed(text: str, subject: CaseSubject, pseudonyms: Pseudonyms) -> str:
    """What a reader wrote about a case, without the identity of its subject.
    Raises `ApiProblem` 409 if the pseudonyms are of another clinic.
    """
    for identity in _known(subject, pseudonyms):
        text, _ = without_identity(text, identity)
    return text


def _known(subject: CaseSubject, pseudonyms: Pseudonyms) -> list[PatientIdentity]:
    try:
        given = (subject.header, subject.patient, subject.study)
        return [pseudonyms.identity(p) for p in given if p is not None]
    except UnknownPseudonym as error:
        raise ApiProblem(
            HTTPStatus.CONFLICT,
            "Nobody knows whom the case is about",
            "its pseudonyms are not in this clinic's database of them, so identity could not be "
            "taken out of the text",
        ) from error


def _without(asked: Asked, identities: Sequence[PatientIdentity], subject: CaseSubject) -> Admitted:
    num_removed = 0
    texts: list[str] = []
    for text in (asked.question, *asked.choices):
        for identity in identities or (_NOBODY,):
            text, num_in_text = without_identity(text, identity)
            num_removed += num_in_text
        texts.append(text)
    question, *choices = texts
    if len({choice.casefold() for choice in choices}) < len(choices):
        raise ApiProblem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "Choices repeat",
            "two choices have the same text once the patient's identity is removed from them; "
            "each must differ",
        )
    subject = subject.model_copy(update={"num_removed": num_removed})
    return Admitted(question=question, choices=choices, subject=subject)


def case_image(ingested: IngestResponse) -> CaseImage:
    """The picture as a case shows it: all that zoom said of the file but whom it shows.

    Which case, and so the URL, is left open.
    """
    return CaseImage(
        url="",
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
