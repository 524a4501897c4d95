"""From the query of an ingest to what the decoder is asked, and from its answer to the response."""

from http import HTTPStatus
from typing import Literal

from services.zoom.formats import PREPROCESSING_VERSION, CanonicalOriginal, Rendering, Window
from shared.api.headers import FileFacts
from shared.api.zoom import (
    AppliedRendering,
    AppliedWindow,
    Axis,
    IngestResponse,
    RenderingRequest,
    WindowPreset,
)
from shared.errors import ApiProblem

PRESETS: dict[WindowPreset, tuple[float, float]] = {
    "lung": (-600, 1500),
    "mediastinum": (50, 350),
    "soft_tissue": (40, 400),
    "abdomen": (50, 400),
    "liver": (30, 150),
    "bone": (400, 1800),
    "brain": (40, 80),
    "subdural": (75, 215),
    "stroke": (40, 40),
}
"""(center, width) in HU, as Radiopaedia's article "Windowing (CT)" gives them; where it gives a
range, a value within it: soft tissue of head and neck 20–60, 350–400; subdural 50–100, 130–300."""

CT_RGB = (
    Window(0, 2048, preset="ct_rgb.red"),
    Window(40, 350, preset="ct_rgb.green"),
    Window(40, 80, preset="ct_rgb.blue"),
)
"""Everything, soft tissue, brain: -1024…1024, -135…215 and 0…80 HU, as MedGemma 1.5's notebook on
CT volumes (`high_dimensional_ct_hugging_face.ipynb`) has them."""

_ORIENTATIONS: dict[Axis, Literal["AS", "RS", "RA"]] = {
    "sagittal": "AS",
    "coronal": "RS",
    "axial": "RA",
}


def asked_rendering(query: RenderingRequest) -> Rendering:
    """What the types cannot say is checked here. Raises `ApiProblem` 422 naming the parameters."""
    return Rendering(
        frame=query.frame, axis=query.axis, index=query.index, windows=_asked_windows(query)
    )


def _asked_windows(query: RenderingRequest) -> tuple[Window, ...]:
    center, width = query.window_center, query.window_width
    if (center is None) != (width is None):
        missing = "window_center" if center is None else "window_width"
        raise _invalid(f"query.{missing}: window_center and window_width are accepted together")
    if query.window is not None and center is not None:
        raise _invalid(
            "query.window: either window or window_center and window_width is accepted, not both"
        )
    if query.window == "ct_rgb":
        return CT_RGB
    if query.window is not None:
        return (Window(*PRESETS[query.window], preset=query.window),)
    return () if center is None or width is None else (Window(center, width),)


def _invalid(detail: str) -> ApiProblem:
    return ApiProblem(HTTPStatus.UNPROCESSABLE_ENTITY, "Request does not validate", detail)


def ingest_response(image: str, original: CanonicalOriginal) -> IngestResponse:
    """The answer to an ingest: the original by hash, and how it was made."""
    shown = original.shown
    facts = FileFacts.model_validate_json(original.facts_json)
    return IngestResponse(
        header=facts.header,
        deidentification=facts.deidentification,
        identity=facts.identity,
        image=image,
        width_px=original.width_px,
        height_px=original.height_px,
        source_format=original.source_format,
        window_center=original.window_center,
        window_width=original.window_width,
        preprocessing_version=PREPROCESSING_VERSION,
        grey=None if original.greys is None else original.greys.name,
        rendering=AppliedRendering(
            frame=shown.frame,
            num_frames=shown.num_frames,
            axis=shown.axis,
            index=shown.index,
            num_slices=shown.num_slices,
            orientation=None if shown.axis is None else _ORIENTATIONS[shown.axis],
            grey_mapping=shown.grey_mapping,
            windows=[
                AppliedWindow(
                    center=window.center,
                    width=window.width,
                    function=window.function,
                    preset=window.preset,
                )
                for window in shown.windows
            ],
        ),
    )
