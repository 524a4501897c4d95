"""The case API's reading side: read, list, and the pixels behind a case.

A case's images are served only through the case, by the hashes it names; whatever else lies in
the blob store stays there.
"""

from http import HTTPStatus
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Query, Request, Response
from fastapi import Path as PathParameter

from services.clinic.examples import (
    EXAMPLE_CASE,
    EXAMPLE_DESCRIPTION,
    EXAMPLE_EVIDENCE,
    EXAMPLE_ID,
    EXAMPLE_PAGE,
    EXAMPLE_WITHHELD,
)
from services.clinic.problem_examples import (
    UNKNOWN_CASE,
    json_example,
    json_examples,
    png_example,
    problems,
)
from services.clinic.showing import shown, summary_of, withholds
from services.clinic.state import CaseId, Show, State, found_case, no_such_case
from services.clinic.store import UnknownCase
from shared.api.case_result import Blanked
from shared.api.clinic import Case, CasePage, ClinicDescription
from shared.api.zoom import WindowPreset
from shared.blobs import BlobStore
from shared.errors import ApiProblem, BlobError

router = APIRouter(prefix="/v1", tags=["cases"])


def _png(request: Request, blobs: BlobStore, name: str) -> Response:
    """A blob as PNG; its name is its ETag."""
    headers = {"etag": f'"{name}"', "cache-control": "private, no-cache"}
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    try:
        content = blobs.get(name)
    except BlobError as error:
        raise ApiProblem(HTTPStatus.GONE, "The image is gone", str(error)) from error
    return Response(content, media_type="image/png", headers=headers)


_GONE = problems(
    gone=(HTTPStatus.GONE, "The image is gone", f"no blob {EXAMPLE_EVIDENCE.crop}"),
)


@router.get(
    "/cases",
    summary="List cases, newest first",
    responses={
        200: json_example("A page of cases.", EXAMPLE_PAGE),
        **UNKNOWN_CASE,
        **problems(
            bad_limit=(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                "Request does not validate",
                "query.limit: Input should be less than or equal to 100",
            )
        ),
    },
)
def list_cases(
    state: State,
    limit: Annotated[int, Query(ge=1, le=100, examples=[20])] = 20,
    before: Annotated[
        str | None, Query(description="Only cases older than this one.", examples=[EXAMPLE_ID])
    ] = None,
) -> CasePage:
    """One page; `next_url` leads to the next."""
    try:
        cases = state.store.newest(limit + 1, before)
    except UnknownCase as error:
        raise no_such_case(error) from error
    page = cases[:limit]
    more = len(cases) > limit
    next_url = f"/v1/cases?limit={limit}&before={page[-1].case_id}" if more else None
    return CasePage(cases=[summary_of(case) for case in page], next_url=next_url)


@router.get(
    "/cases/{case_id}",
    summary="Read a case",
    description="The case as last written; `running` until it ends. An answer it withholds is left "
    "out with all that gives it away, unless `show=withheld` asks for it.",
    responses={
        200: json_examples("The case.", answered=EXAMPLE_CASE, withheld=EXAMPLE_WITHHELD),
        **UNKNOWN_CASE,
        **problems(
            bad_show=(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                "Request does not validate",
                "query.show: Input should be 'withheld'",
            )
        ),
    },
)
def read_case(state: State, case_id: CaseId, show: Show = None) -> Case:
    """The case, with its answer if it may be seen or is asked for."""
    case = found_case(state, case_id)
    if withholds(case) and show is not None:
        state.metrics.withheld_shown.labels("case").inc()
    return shown(case, with_withheld=show is not None)


_PNG_ROUTE: dict[str, Any] = {"response_class": Response}


@router.get(
    "/cases/{case_id}/image",
    summary="The original image of a case, as PNG",
    responses={200: png_example("The ingested original."), **UNKNOWN_CASE, **_GONE},
    **_PNG_ROUTE,
)
def read_image(request: Request, state: State, case_id: CaseId) -> Response:
    """The ingested original."""
    return _png(request, state.blobs, found_case(state, case_id).image.sha256)


@router.get(
    "/cases/{case_id}/crops/{crop}",
    summary="A crop of a case's evidence, as the policy was shown it",
    responses={
        200: png_example("The crop."),
        **problems(
            unknown_case=(HTTPStatus.NOT_FOUND, "No such case", f"no case {EXAMPLE_ID}"),
            unknown_crop=(
                HTTPStatus.NOT_FOUND,
                "No such crop",
                f"case {EXAMPLE_ID} has no crop {EXAMPLE_EVIDENCE.crop}",
            ),
        ),
        **_GONE,
    },
    **_PNG_ROUTE,
)
def read_crop(
    request: Request,
    state: State,
    case_id: CaseId,
    crop: Annotated[str, PathParameter(examples=[EXAMPLE_EVIDENCE.crop])],
) -> Response:
    """A crop that the case's evidence or one of its events names."""
    is_evidence = crop in {zoom.crop for zoom in found_case(state, case_id).evidence}
    if not is_evidence and not state.store.has_told_crop(case_id, crop):
        raise ApiProblem(
            HTTPStatus.NOT_FOUND, "No such crop", f"case {case_id} has no crop {crop[:64]}"
        )
    return _png(request, state.blobs, crop)


@router.get(
    "/cases/{case_id}/blanked/{region}",
    summary="The image of a verified case without a region, as PNG",
    responses={
        200: png_example("The image that was asked about again."),
        **problems(
            unknown_case=(HTTPStatus.NOT_FOUND, "No such case", f"no case {EXAMPLE_ID}"),
            not_asked=(
                HTTPStatus.NOT_FOUND,
                "Not asked again",
                f"case {EXAMPLE_ID} was not asked again with this region blanked",
            ),
            unknown_region=(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                "Request does not validate",
                "path.region: Input should be 'evidence' or 'elsewhere'",
            ),
        ),
        **_GONE,
    },
    **_PNG_ROUTE,
)
def read_blanked(request: Request, state: State, case_id: CaseId, region: Blanked) -> Response:
    """What the policy was shown instead of the original."""
    verification = found_case(state, case_id).verification
    by_region = (
        {}
        if verification is None
        else {
            Blanked.EVIDENCE: verification.evidence_blanked,
            Blanked.ELSEWHERE: verification.elsewhere_blanked,
        }
    )
    asked = by_region.get(region)
    if asked is None:
        raise ApiProblem(
            HTTPStatus.NOT_FOUND,
            "Not asked again",
            f"case {case_id} was not asked again with this region blanked",
        )
    return _png(request, state.blobs, asked.image)


@router.get(
    "/cases/{case_id}/heatmap",
    summary="How many agreeing trajectories looked where, as PNG",
    responses={
        200: png_example("Grey levels from 0 (nobody) to 255 (all that agree)."),
        **problems(
            unknown_case=(HTTPStatus.NOT_FOUND, "No such case", f"no case {EXAMPLE_ID}"),
            no_heatmap=(
                HTTPStatus.NOT_FOUND,
                "No heatmap",
                f"no agreeing trajectory of case {EXAMPLE_ID} zoomed",
            ),
        ),
        **_GONE,
    },
    **_PNG_ROUTE,
)
def read_heatmap(request: Request, state: State, case_id: CaseId) -> Response:
    """The heatmap of the case's consensus."""
    consensus = found_case(state, case_id).consensus
    if consensus is None or consensus.heatmap_sha256 is None:
        raise ApiProblem(
            HTTPStatus.NOT_FOUND, "No heatmap", f"no agreeing trajectory of case {case_id} zoomed"
        )
    return _png(request, state.blobs, consensus.heatmap_sha256)


@router.get(
    "/clinic",
    tags=["clinic"],
    summary="What this clinic accepts",
    responses={200: json_example("Limits and the notice.", EXAMPLE_DESCRIPTION)},
)
def describe(state: State) -> ClinicDescription:
    """Limits of a submission."""
    settings = state.settings
    return ClinicDescription(
        default_trajectories=settings.default_k,
        max_choice_chars=settings.max_choice_chars,
        max_question_chars=settings.max_question_chars,
        max_upload_bytes=settings.max_upload_bytes,
        accepted_formats=["PNG", "JPEG", "WebP", "TIFF", "DICOM", "NIfTI"],
        windows=[*get_args(WindowPreset), "ct_rgb"],
    )
