"""Segments of a request become the engine's prompt, and the ids that the caller will keep.

An image segment is <|vision_start|>, one <|image_pad|> per image token, <|vision_end|>. The engine
is given one placeholder per image and expands it itself; `Prompt.token_ids` is our own expansion,
and the two are compared before anything is generated.
"""

import asyncio
from dataclasses import dataclass
from http import HTTPStatus

from PIL.Image import Image

from services.policy.images import ImageLoader
from services.policy.tokens import Vocabulary
from shared.api.policy import ImageSegment, Segment, TextSegment, TokensSegment
from shared.errors import ApiProblem
from shared.geometry import ImageSize


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt ready for the engine."""

    segment_token_ids: list[list[int]]
    """As answered: images expanded."""
    engine_token_ids: list[int]
    """As given to the engine: one placeholder per image."""
    images: list[Image]
    names: list[str]
    """Blob name of each image."""

    @property
    def token_ids(self) -> list[int]:
        """All ids, images expanded."""
        return [token_id for ids in self.segment_token_ids for token_id in ids]


def refuse(detail: str, title: str = "Request cannot be served") -> ApiProblem:
    """A caller's mistake in the request's content (422)."""
    return ApiProblem(HTTPStatus.UNPROCESSABLE_ENTITY, title, detail)


def check_token_ids(ids: list[int] | tuple[int, ...], vocabulary: Vocabulary, where: str) -> None:
    """Raise `ApiProblem` for ids outside the vocabulary and for vision placeholders."""
    if max(ids) >= vocabulary.vocab_size:
        raise refuse(
            f"{where}: token id {max(ids)} is outside the vocabulary of {vocabulary.vocab_size}"
        )
    for token_id in vocabulary.forbidden_ids.intersection(ids):
        raise refuse(
            f"{where}: holds the vision placeholder {vocabulary.describe(token_id)}; "
            "send the image as an image segment"
        )


class PromptBuilder:
    """Builds prompts from segments."""

    def __init__(self, vocabulary: Vocabulary, images: ImageLoader, max_images: int) -> None:
        self._vocabulary = vocabulary
        self._images = images
        self._max_images = max_images

    async def build(self, segments: list[Segment]) -> Prompt:
        """Raises `ApiProblem` naming the segment that cannot be used."""
        names = [s.image for s in segments if isinstance(s, ImageSegment)]
        if len(names) > self._max_images:
            raise refuse(f"{len(names)} images; this server takes at most {self._max_images}")
        loaded = await asyncio.gather(*(self._images.load(name) for name in dict.fromkeys(names)))
        by_name = dict(zip(dict.fromkeys(names), loaded, strict=True))
        answered: list[list[int]] = []
        engine: list[int] = []
        for index, segment in enumerate(segments):
            if isinstance(segment, ImageSegment):
                start, pad, end = self._image_ids()
                num_tokens = ImageSize(*by_name[segment.image].size).num_image_tokens
                answered.append([start, *[pad] * num_tokens, end])
                engine += [start, pad, end]
            else:
                ids = self._text_or_tokens(segment, f"segments[{index}]")
                answered.append(ids)
                engine += ids
        return Prompt(answered, engine, [by_name[name] for name in names], names)

    def _image_ids(self) -> tuple[int, int, int]:
        vocabulary = self._vocabulary
        return vocabulary.vision_start_id, vocabulary.image_pad_id, vocabulary.vision_end_id

    def _text_or_tokens(self, segment: TextSegment | TokensSegment, where: str) -> list[int]:
        is_text = isinstance(segment, TextSegment)
        ids = self._vocabulary.encode(segment.text) if is_text else segment.token_ids
        check_token_ids(ids, self._vocabulary, where)
        return list(ids)
