"""A follow-up's prompt: the earlier questions with what was shown and written, then the new one.

    view, question, [turn, crop | error]*, answer, question, …, the question asked now

The earlier turns are those of the shown trajectories, in the chat form of METHOD.md. They are sent
as text, because a case keeps what was written, not its token ids; marks of the form <|…|>, which
only the chat itself may hold, are left out of them.

Where the whole does not fit, the oldest crops go first (a text says that there was one), then the
oldest questions with their answers. Kept free are one turn's tokens, and an image for every zoom
that the policy may still make. Sizes are the policy server's own: its tokenizer counts.
"""

import asyncio
import dataclasses
from collections.abc import Sequence
from http import HTTPStatus

import msgspec

from services.clinic.submission import CONTROL_TOKEN
from shared.agent.opened import OpenedProblem
from shared.agent.prompt import (
    error_observation,
    next_question,
    observation_after_image,
    observation_before_image,
    observation_without_image,
    prompt_after_image,
)
from shared.agent.tools import window_caption, zoom_caption
from shared.api.case_course import CaseContext, CaseToolCall, ContextCase, DroppedCase, DropReason
from shared.api.clinic import Case, CaseStatus
from shared.api.policy import ImageSegment, PolicyDescription, Segment, TextSegment
from shared.clients.policy import PolicyClient
from shared.errors import ApiProblem, MedvrError
from shared.geometry import ImageSize
from shared.trajectory import WindowArguments

MAX_EARLIER = 16
"""Questions that may come before one."""

_NUM_VISION_MARKS = 2


class ContextFull(MedvrError):
    """The question alone does not fit the policy's context."""


def check_followable(earlier: Sequence[Case]) -> None:
    """Whether another question may follow these (oldest first). Raises `ApiProblem` 409."""
    former = earlier[-1]
    if former.status is not CaseStatus.ANSWERED:
        raise ApiProblem(
            HTTPStatus.CONFLICT,
            "The case has no answer to go on from",
            f"case {former.case_id} is {former.status.value}; only an answered case can be "
            "followed",
        )
    if len(earlier) > MAX_EARLIER:
        raise ApiProblem(
            HTTPStatus.CONFLICT,
            "The conversation is too long",
            f"{len(earlier)} questions were asked; at most {MAX_EARLIER} can be followed",
        )


class _Crop(msgspec.Struct, frozen=True):
    """A crop that was shown, with the texts around it."""

    image: str
    size: ImageSize
    before: str
    after: str
    instead: str
    """What stands for all three when there is no room."""


_Piece = str | _Crop


class _Exchange(msgspec.Struct, frozen=True):
    """An earlier question with its answer."""

    case: Case
    pieces: list[_Piece]
    """What followed the question."""

    @property
    def crops(self) -> list[_Crop]:
        return [piece for piece in self.pieces if isinstance(piece, _Crop)]

    def shortest_text(self, *, is_first: bool) -> str:
        """The whole exchange, without its crops."""
        put = prompt_after_image if is_first else next_question
        said = (piece if isinstance(piece, str) else piece.instead for piece in self.pieces)
        return put(self.case.question, self.case.choices) + "".join(said)


def _plain(text: str) -> str:
    return CONTROL_TOKEN.sub("", text)


def _caption(call: CaseToolCall) -> str | None:
    """What was said of the picture that answered a call; None if it named none."""
    if call.bbox_2d is not None:
        return zoom_caption(call.bbox_2d)
    window = call.window
    return None if window is None else window_caption(WindowArguments(window.center, window.width))


def _exchange_of(case: Case) -> _Exchange:
    """An answered case as the policy is reminded of it."""
    pieces: list[_Piece] = []
    for turn in case.turns:
        pieces.append(_plain(turn.text))
        call = turn.call
        if call is None:
            continue
        caption = _caption(call)
        if call.evidence_index is not None and caption is not None:
            shown = case.evidence[call.evidence_index]
            crop = _Crop(
                image=shown.crop,
                size=ImageSize(shown.crop_width_px, shown.crop_height_px),
                before=observation_before_image(),
                after=observation_after_image(caption),
                instead=observation_without_image(),
            )
            pieces.append(crop)
        elif call.error is not None:
            pieces.append(error_observation(_plain(call.error)))
    return _Exchange(case, pieces)


class _Sizes(msgspec.Struct, frozen=True):
    """Tokens of everything that may be shown."""

    base: int
    """System text, view, and the question asked now."""
    exchanges: list[int]
    """Without their crops."""
    crops: list[list[int]]
    """What showing a crop costs more than saying that there was one, per exchange."""


async def _sizes_of(
    policy: PolicyClient, opened: OpenedProblem, case: Case, exchanges: Sequence[_Exchange]
) -> _Sizes:
    async def of_crop(crop: _Crop) -> int:
        shown, instead = await asyncio.gather(
            policy.count_tokens(crop.before + crop.after), policy.count_tokens(crop.instead)
        )
        return shown + crop.size.num_image_tokens + _NUM_VISION_MARKS - instead

    question = next_question(case.question, case.choices)
    system, asked, texts, crops = await asyncio.gather(
        policy.count_tokens(opened.text_before),
        policy.count_tokens(question),
        asyncio.gather(
            *(
                policy.count_tokens(exchange.shortest_text(is_first=index == 0))
                for index, exchange in enumerate(exchanges)
            )
        ),
        asyncio.gather(*(asyncio.gather(*map(of_crop, e.crops)) for e in exchanges)),
    )
    view = opened.view_size.num_image_tokens + _NUM_VISION_MARKS
    return _Sizes(system + view + asked, list(texts), [list(of_one) for of_one in crops])


def _kept(sizes: _Sizes, most_tokens: int, most_crops: int) -> tuple[int, list[int]]:
    """Index of the first exchange that is kept, and of each the first crop that is shown.

    Raises `ContextFull` if not even the question fits.
    """
    num_crops = [len(crops) for crops in sizes.crops]
    shown_from = [0] * len(num_crops)
    total = sizes.base + sum(sizes.exchanges) + sum(map(sum, sizes.crops))
    left = sum(num_crops)
    for index, crops in enumerate(sizes.crops):
        for crop in crops:
            if total <= most_tokens and left <= most_crops:
                break
            total, left = total - crop, left - 1
            shown_from[index] += 1
    first = 0
    while total > most_tokens and first < len(sizes.exchanges):
        total -= sizes.exchanges[first]
        first += 1
    if total > most_tokens:
        raise ContextFull(
            f"the question and its image take {sizes.base} tokens of the policy's context, "
            f"where {most_tokens} are free"
        )
    return first, shown_from


def _history(
    kept: Sequence[_Exchange], shown_from: Sequence[int], case: Case
) -> tuple[list[Segment], list[ImageSize]]:
    """What follows the first kept question: segments, and the sizes of the images among them."""
    segments: list[Segment] = []
    sizes: list[ImageSize] = []
    text = ""
    for number, (exchange, first_crop) in enumerate(zip(kept, shown_from, strict=True)):
        if number > 0:
            text += next_question(exchange.case.question, exchange.case.choices)
        num_crops = 0
        for piece in exchange.pieces:
            if isinstance(piece, str):
                text += piece
                continue
            num_crops += 1
            if num_crops <= first_crop:
                text += piece.instead
                continue
            segments += [TextSegment(text=text + piece.before), ImageSegment(image=piece.image)]
            sizes.append(piece.size)
            text = piece.after
    text += next_question(case.question, case.choices)
    return [*segments, TextSegment(text=text)], sizes


async def reminded(
    policy: PolicyClient,
    description: PolicyDescription,
    opened: OpenedProblem,
    case: Case,
    earlier: Sequence[Case],
) -> tuple[OpenedProblem, CaseContext]:
    """The problem opened for a follow-up, with as much of `earlier` (oldest first) as fits.

    What was written about a view of another size is left out, with all before it: its boxes would
    name other places. Raises `ContextFull`, `PolicyError`.
    """
    view = (opened.view_size.width_px, opened.view_size.height_px)
    same_view = len(earlier)
    while same_view > 0 and _view_of(earlier[same_view - 1]) == view:
        same_view -= 1
    exchanges = [_exchange_of(each) for each in earlier[same_view:]]
    sizes = await _sizes_of(policy, opened, case, exchanges)
    first, shown_from = _kept(
        sizes,
        description.max_model_len_tokens - case.settings.max_turn_tokens,
        max(0, description.max_images - description.max_turns),
    )
    kept, shown_from = exchanges[first:], shown_from[first:]
    context = CaseContext(
        shown=[
            ContextCase(
                case_id=exchange.case.case_id,
                num_crops_shown=len(exchange.crops) - first_crop,
                num_crops_dropped=first_crop,
            )
            for exchange, first_crop in zip(kept, shown_from, strict=True)
        ],
        dropped=[
            *(_dropped(each, DropReason.OTHER_VIEW) for each in earlier[:same_view]),
            *(_dropped(each.case, DropReason.CONTEXT_FULL) for each in exchanges[:first]),
        ],
    )
    if not kept:
        return opened, context
    asked = kept[0].case
    history, history_sizes = _history(kept, shown_from, case)
    opened = dataclasses.replace(
        opened,
        text_after=prompt_after_image(asked.question, asked.choices),
        history=history,
        history_sizes=history_sizes,
    )
    return opened, context


def _view_of(case: Case) -> tuple[int, int] | None:
    return None if case.policy is None else (case.policy.view_width_px, case.policy.view_height_px)


def _dropped(case: Case, reason: DropReason) -> DroppedCase:
    return DroppedCase(case_id=case.case_id, reason=reason)
