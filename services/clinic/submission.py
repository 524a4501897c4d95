"""What a caller may ask: the form of `POST /v1/cases`, checked at the edge.

Raises `ApiProblem` 413 or 422 with what was wrong and what is accepted, never with the text
itself. Past this point the question and the choices are plain text: trimmed, within their
limits, and free of the model's control tokens, which the policy server would take for its own.
"""

import re
import secrets
from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Literal

import msgspec
from fastapi import Form

from services.clinic.settings import ClinicSettings
from shared.api.clinic import MAX_CHOICES, MAX_TRAJECTORIES, CaseSettings
from shared.api.zoom import MAX_INDEX, MAX_WINDOW, Axis, RenderingRequest, WindowPreset
from shared.errors import ApiProblem

MAX_SEED = 2**53 - 1
"""The largest whole number that every JSON reader keeps exactly."""

CONTROL_TOKEN = re.compile(r"<\|[^<>]*\|>")


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A question, whatever image it is about."""

    question: str
    choices: list[str]
    settings: CaseSettings


RENDERING_FIELDS = tuple(RenderingRequest.model_fields)


def asked_rendering(
    frame: Annotated[
        int | None,
        Form(
            ge=1,
            le=MAX_INDEX,
            description="Of a multi-frame DICOM file or a NIfTI time series, from 1.",
            examples=[1],
        ),
    ] = None,
    axis: Annotated[
        Axis | None, Form(description="NIfTI: which way to slice.", examples=["axial"])
    ] = None,
    index: Annotated[
        int | None,
        Form(ge=0, le=MAX_INDEX, description="NIfTI: the slice, from 0.", examples=[0]),
    ] = None,
    window: Annotated[
        WindowPreset | Literal["ct_rgb"] | None,
        Form(
            description="CT: a usual window, or three of them as red, green and blue.",
            examples=["lung"],
        ),
    ] = None,
    window_center: Annotated[
        float | None,
        Form(
            ge=-MAX_WINDOW,
            le=MAX_WINDOW,
            description="With `window_width`, instead of `window`: in units after rescaling.",
            examples=[40],
        ),
    ] = None,
    window_width: Annotated[float | None, Form(gt=0, le=MAX_WINDOW, examples=[80])] = None,
) -> RenderingRequest:
    """Which picture of the file is asked for, and how its greys are to be shown.

    Whether the file has it is zoom's to say.
    """
    return RenderingRequest(
        frame=frame,
        axis=axis,
        index=index,
        window=window,
        window_center=window_center,
        window_width=window_width,
    )


class Submission(Asked, frozen=True, kw_only=True):
    """A case as asked, before its image is known to be one."""

    image: bytes
    """The uploaded file."""
    media_type: str | None
    rendering: RenderingRequest


def _refuse(title: str, detail: str) -> ApiProblem:
    return ApiProblem(HTTPStatus.UNPROCESSABLE_ENTITY, title, detail)


def only_fields(
    given: Sequence[str], accepted: Sequence[str], many: Sequence[str] = ("choices",)
) -> None:
    """Refuse what would be missed in silence: a misspelt field, the second of two questions."""
    unknown = sorted(set(given) - set(accepted))
    repeated = sorted({n for n in given if n not in many and given.count(n) > 1})
    if unknown or repeated:
        what = f"unknown field {unknown[0][:64]!r}" if unknown else f"{repeated[0]} is given twice"
        detail = f"accepted: {', '.join(accepted)}; only {' and '.join(many)} may be repeated"
        raise _refuse("Request does not validate", f"{what}; {detail}")


def checked_text(text: str, what: str, max_chars: int) -> str:
    """A text trimmed, within its limit and without control tokens. Raises `ApiProblem`."""
    text = text.strip()
    if not text:
        raise _refuse(f"The {what} is empty", f"the {what} must have at least one character")
    if len(text) > max_chars:
        raise _refuse(
            f"The {what} is too long",
            f"the {what} has {len(text)} characters; at most {max_chars} are accepted",
        )
    if CONTROL_TOKEN.search(text):
        raise _refuse(
            f"The {what} holds a control token",
            f"the {what} holds text of the form <|…|>, which is reserved for the model",
        )
    return text


def _checked_choices(choices: Sequence[str], settings: ClinicSettings) -> list[str]:
    if len(choices) > MAX_CHOICES:
        raise _refuse(
            "Too many choices", f"{len(choices)} choices given; at most {MAX_CHOICES} are accepted"
        )
    if len(choices) == 1:
        raise _refuse(
            "A single choice",
            "one choice given; give two or more, or none for an open question",
        )
    checked = [
        checked_text(choice, f"choice {number}", settings.max_choice_chars)
        for number, choice in enumerate(choices, start=1)
    ]
    if len({choice.casefold() for choice in checked}) < len(checked):
        raise _refuse("Choices repeat", "two choices have the same text; each must differ")
    return checked


def _checked_image(image: bytes, settings: ClinicSettings) -> bytes:
    if not image:
        raise _refuse("The image is empty", "the image file has no bytes")
    if len(image) > settings.max_upload_bytes:
        raise ApiProblem(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            "The image file is too large",
            f"the image file has {len(image)} bytes; "
            f"at most {settings.max_upload_bytes} are accepted",
        )
    return image


def check_question(
    settings: ClinicSettings,
    *,
    question: str,
    choices: Sequence[str],
    k: int | None,
    seed: int | None,
    verify: bool = False,
) -> Asked:
    """A question with its sampling. Raises `ApiProblem`. Without a seed one is drawn."""
    num_trajectories = settings.default_k if k is None else k
    if not 1 <= num_trajectories <= MAX_TRAJECTORIES:
        raise _refuse(
            "k is out of range", f"k is {num_trajectories}; 1 to {MAX_TRAJECTORIES} is accepted"
        )
    if seed is not None and not 0 <= seed <= MAX_SEED:
        raise _refuse("seed is out of range", f"0 to {MAX_SEED} is accepted")
    return Asked(
        question=checked_text(question, "question", settings.max_question_chars),
        choices=_checked_choices(choices, settings),
        settings=CaseSettings(
            num_trajectories=num_trajectories,
            seed=secrets.randbelow(2**32) if seed is None else seed,
            temperature=0.0 if num_trajectories == 1 else 1.0,
            max_turn_tokens=settings.max_turn_tokens,
            verify=verify,
            abstain_below=0.0 if settings.calibration is None else settings.abstain_below,
            withhold_unsupported=verify and settings.withhold_unsupported,
        ),
    )


def check_submission(
    settings: ClinicSettings,
    *,
    image: bytes,
    media_type: str | None,
    question: str,
    choices: Sequence[str],
    k: int | None,
    seed: int | None,
    rendering: RenderingRequest,
    verify: bool = False,
) -> Submission:
    """The form as a `Submission`. Raises `ApiProblem`."""
    asked = check_question(
        settings, question=question, choices=choices, k=k, seed=seed, verify=verify
    )
    return Submission(
        image=_checked_image(image, settings),
        media_type=media_type,
        question=asked.question,
        choices=asked.choices,
        settings=asked.settings,
        rendering=rendering,
    )
