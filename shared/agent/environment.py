"""What the policy may look at: one problem opened, its view, and the crops a call asks for.

The environment turns a parsed call into an `Observation`: the segments the policy is sent next.
Geometry is checked here, in process, with the same functions zoom uses, so a bad box never leaves
the loop (it becomes an error text) and the size of a crop is known before it is fetched: an
observation that would not fit the context is never made. What zoom itself refuses is a
`ZoomError`. Only the problem's prompt spans are ever changed after opening, once, from None.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from shared.agent.prompt import (
    error_observation,
    observation_after_image,
    observation_before_image,
    prompt_after_image,
    prompt_before_image,
)
from shared.api.policy import (
    GenerateRequest,
    GenerateResponse,
    ImageSegment,
    PolicyDescription,
    Segment,
    TextSegment,
)
from shared.api.zoom import CropRequest, CropResponse, PixelLimitsModel, WireImageSize
from shared.geometry import Box, ImageSize, PixelLimits, place_box, smart_resize, view_to_original
from shared.trajectory import ImageSpan, Span

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
        """Render a region as the model is shown it. Raises `ZoomError` or `BadBox`."""
        ...


class ViewLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How this policy is shown images, and how much: from its description."""

    crop: PixelLimits
    min_side_px: int
    max_model_len_tokens: int


@dataclass
class OpenedProblem:
    """A question about an image, ready to be attempted any number of times.

    `prompt` is None until a first response has brought the token ids; all attempts share it.
    """

    image: str
    """sha256 of the original."""
    image_size: ImageSize
    """Of the original."""
    view: str
    """sha256 of the whole image as shown."""
    view_size: ImageSize
    limits: ViewLimits
    text_before: str
    text_after: str
    history: Sequence[Segment] = ()
    """What follows the first question of a conversation: turns, what they were shown, further
    questions, up to the policy's next turn."""
    history_sizes: Sequence[ImageSize] = ()
    """Of the images in it."""
    prompt: list[Span] | None = None

    @property
    def prompt_segments(self) -> list[Segment]:
        """The prompt before anyone knows its token ids."""
        return [
            TextSegment(text=self.text_before),
            ImageSegment(image=self.view),
            TextSegment(text=self.text_after),
            *self.history,
        ]


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """A region the policy may be shown."""

    box: Box
    """As it will be cropped: original pixels."""
    bbox_2d: tuple[float, float, float, float]
    """As written: view pixels."""
    shown_size: ImageSize


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """What answers a call; its token ids are not known before it is sent."""

    segments: Sequence[Segment]
    most_tokens: int
    """It takes no more tokens than this."""
    crop: ImageSpan | None = None
    """The crop shown, still without token ids; None for an error text."""


async def open_problem(
    zoom: Zoom,
    description: PolicyDescription,
    *,
    image: str,
    question: str,
    options: Sequence[str] = (),
) -> OpenedProblem:
    """Render the view by the policy's limits and put the prompt together. Raises `ZoomError`."""
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
            crop=PixelLimits(description.crop.min_pixels, description.crop.max_pixels),
            min_side_px=description.min_side_px,
            max_model_len_tokens=description.max_model_len_tokens,
        ),
        text_before=prompt_before_image(),
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

    def place(self, bbox_2d: tuple[float, float, float, float]) -> Look:
        """The region a call asks for. Raises `BadBox`, whose message is fit for the policy."""
        opened = self._opened
        corners = view_to_original(bbox_2d, opened.view_size, opened.image_size)
        box = place_box(corners, opened.image_size, opened.limits.min_side_px)
        shown = smart_resize(ImageSize(box.width_px, box.height_px), opened.limits.crop)
        return Look(box=box, bbox_2d=bbox_2d, shown_size=shown)

    def most_tokens_of(self, look: Look) -> int:
        """The most tokens that showing this region can take."""
        texts = observation_before_image() + observation_after_image(look.bbox_2d)
        return most_tokens(texts) + look.shown_size.num_image_tokens + _NUM_VISION_MARKS

    async def show(self, look: Look) -> Observation:
        """Fetch the crop. Raises `ZoomError`."""
        opened = self._opened
        crop = await self._zoom.crop(
            CropRequest.model_construct(
                image=opened.image,
                box=list(look.bbox_2d),
                frame="view",
                view=WireImageSize(
                    width_px=opened.view_size.width_px, height_px=opened.view_size.height_px
                ),
                limits=PixelLimitsModel.model_construct(
                    min_pixels=opened.limits.crop.min_pixels,
                    max_pixels=opened.limits.crop.max_pixels,
                ),
                min_side_px=opened.limits.min_side_px,
            )
        )
        return Observation(
            segments=(
                TextSegment.model_construct(text=observation_before_image()),
                ImageSegment.model_construct(image=crop.crop),
                TextSegment.model_construct(text=observation_after_image(look.bbox_2d)),
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
