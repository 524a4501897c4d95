"""What the policy may look at: one problem opened, its view, and the pictures a call asks for.

The environment turns a parsed call into an `Observation`: the segments the policy is sent next.
What a tool shows is checked here, in process, with the same functions zoom uses, so a bad box never
leaves the loop (it becomes an error text) and the size of a picture is known before it is fetched:
an observation that would not fit the context is never made. What zoom itself refuses is a
`ZoomError`. Only the problem's prompt spans are ever changed after opening, once, from None.
"""

import re
from collections.abc import Sequence
from typing import Protocol

import msgspec

from shared.agent.opened import OpenedProblem, ViewLimits
from shared.agent.prompt import (
    error_observation,
    observation_after_image,
    observation_before_image,
    prompt_after_image,
    prompt_before_image,
)
from shared.agent.tools import TOOLS, Arguments, Look, UnknownTool, tools_named
from shared.api.policy import (
    GenerateRequest,
    GenerateResponse,
    ImageSegment,
    PolicyDescription,
    Segment,
    TextSegment,
)
from shared.api.zoom import CropRequest, CropResponse, PixelLimitsModel
from shared.errors import PolicyError
from shared.geometry import ImageSize, PixelLimits
from shared.trajectory import ImageSpan, WindowArguments

_CONTROL_TOKEN = re.compile(r"<\|[a-z_]+\|>")
_NUM_VISION_MARKS = 2
"""Vision start and vision end around the placeholders of an image."""


class Policy(Protocol):
    """The policy server as the agent loop sees it: `PolicyClient`."""

    async def generate(self, request: GenerateRequest) -> GenerateResponse:
        """Continue the segments by one turn. Raises `PolicyError`."""
        ...


class Zoom(Protocol):
    """The zoom service as the agent loop sees it: `ZoomClient`."""

    async def crop(self, request: CropRequest) -> CropResponse:
        """Render a region as the model is shown it.

        Raises `ZoomError`, or `BadBox` or `NoGreyLevels` for what a policy should not have asked.
        """
        ...


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """What answers a call; its token ids are not known before it is sent."""

    segments: Sequence[Segment]
    most_tokens: int
    """It takes no more tokens than this."""
    crop: ImageSpan | None = None
    """The picture shown, still without token ids; None for an error text."""


async def open_problem(
    zoom: Zoom,
    description: PolicyDescription,
    *,
    image: str,
    question: str,
    options: Sequence[str] = (),
) -> OpenedProblem:
    """Render the view by the policy's limits and put the prompt together.

    Raises `ZoomError`, and `PolicyError` if the policy has a tool that this loop does not know.
    """
    try:
        tools = tools_named(description.tools)
    except UnknownTool as error:
        raise PolicyError(str(error), is_transient=False) from error
    shown = await zoom.crop(
        CropRequest(
            image=image,
            limits=PixelLimitsModel(
                min_pixels=description.view.min_pixels, max_pixels=description.view.max_pixels
            ),
        )
    )
    return OpenedProblem(
        image=image,
        image_size=ImageSize(shown.image_width_px, shown.image_height_px),
        view=shown.crop,
        view_size=ImageSize(shown.shown_width_px, shown.shown_height_px),
        limits=ViewLimits(
            view=PixelLimits(description.view.min_pixels, description.view.max_pixels),
            crop=PixelLimits(description.crop.min_pixels, description.crop.max_pixels),
            min_side_px=description.min_side_px,
            max_model_len_tokens=description.max_model_len_tokens,
        ),
        tools=tuple(description.tools),
        text_before=prompt_before_image(tools),
        text_after=prompt_after_image(question, options),
    )


def most_tokens(text: str) -> int:
    """The most tokens a byte-level tokenizer can make of a text: its bytes, control tokens as one.

    The exact number is known only once the server has tokenised it; room is judged by this bound,
    so that it never depends on which texts were met before.
    """
    return len(_CONTROL_TOKEN.sub("_", text).encode())


class Environment:
    """Answers the calls of one attempt at an opened problem."""

    def __init__(self, zoom: Zoom, opened: OpenedProblem) -> None:
        self._zoom = zoom
        self._opened = opened

    def plan(self, tool: str, arguments: Arguments, window: WindowArguments | None) -> Look:
        """The picture a call asks for, while a window is in force.

        Raises `BadBox` or `BadWindow`, whose message is fit for the policy.
        """
        return TOOLS[tool].plan(arguments, self._opened, window)

    def most_tokens_of(self, look: Look) -> int:
        """The most tokens that showing this picture can take."""
        texts = observation_before_image() + observation_after_image(look.caption)
        return most_tokens(texts) + look.shown_size.num_image_tokens + _NUM_VISION_MARKS

    async def show(self, look: Look) -> Observation:
        """Fetch the picture. Raises `ZoomError`, `BadBox`, `NoGreyLevels`."""
        crop = await self._zoom.crop(look.request)
        return Observation(
            segments=(
                TextSegment.model_construct(text=observation_before_image()),
                ImageSegment.model_construct(image=crop.crop),
                TextSegment.model_construct(text=observation_after_image(look.caption)),
            ),
            most_tokens=self.most_tokens_of(look),
            crop=ImageSpan(
                token_ids=[],
                image=crop.crop,
                size=ImageSize(crop.shown_width_px, crop.shown_height_px),
            ),
        )

    def tell(self, error: str) -> Observation:
        """The observation that answers a bad call."""
        text = error_observation(error)
        return Observation(
            segments=(TextSegment.model_construct(text=text),), most_tokens=most_tokens(text)
        )
