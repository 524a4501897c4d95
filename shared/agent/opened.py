"""An opened problem: the image as the policy is shown it, and what it is asked."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from shared.api.policy import ImageSegment, Segment, TextSegment
from shared.geometry import ImageSize, PixelLimits
from shared.trajectory import Span


class ViewLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How this policy is shown images, and how much: from its description."""

    view: PixelLimits
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
    tools: tuple[str, ...]
    """Names of the tools the policy is told of, and no other is answered."""
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
