"""What a running case tells, event by event: pure functions but for `Teller`'s memory of a call."""

from collections.abc import Awaitable, Callable, Sequence

from services.clinic.reasoning import (
    crop_url,
    mean_entropy_nats,
    normalised,
    thought_of,
    wire_box,
    wire_window,
)
from shared.agent.episode import CallMade
from shared.agent.parser import parse_turn
from shared.api.case_events import (
    AnswerEvent,
    CaseEvent,
    DoneEvent,
    ErrorEvent,
    TrajectoryEvent,
    TurnEvent,
    UncertaintyEvent,
    ZoomEvent,
)
from shared.api.clinic import Case, CaseStatus
from shared.geometry import Box, ImageSize
from shared.trajectory import Trajectory, Turn

Tell = Callable[[Sequence[CaseEvent]], Awaitable[None]]
"""Takes events in; they are kept, in order, and followers let know, soon after."""


class Teller:
    """Tells of one trajectory of a case; its methods are `run_episode`'s callbacks."""

    def __init__(self, case: Case, trajectory_id: str, tell: Tell) -> None:
        self._case_id = case.case_id
        self._size = ImageSize(case.image.width_px, case.image.height_px)
        self._trajectory_id = trajectory_id
        self._tell = tell
        self._num_turns = 0
        self._made: CallMade | None = None
        """The call of the turn in hand."""

    def on_call(self, made: CallMade) -> None:
        """Remember a call until its turn is told."""
        self._made = made

    async def on_turn(self, turn: Turn) -> None:
        """Tell of a turn, how sure its call was, and the crop it was answered with."""
        made, self._made = self._made, None
        events: list[CaseEvent] = [self._turn(turn)]
        if made is not None:
            events.append(self._uncertainty(made))
        events.extend(self._zoom(turn))
        self._num_turns += 1
        await self._tell(events)

    async def on_end(self, trajectory: Trajectory) -> None:
        """Tell that the trajectory ended."""
        ended = TrajectoryEvent(
            trajectory_id=self._trajectory_id,
            answer=trajectory.answer,
            stop_reason=trajectory.stop_reason.value,
            num_turns=len(trajectory.turns),
        )
        await self._tell([ended])

    def _turn(self, turn: Turn) -> TurnEvent:
        generation = turn.generation
        return TurnEvent(
            trajectory_id=self._trajectory_id,
            turn=self._num_turns,
            thought=thought_of(generation.text),
            mean_entropy_nats=mean_entropy_nats(generation),
            num_tokens=len(generation.token_ids),
            answer=parse_turn(generation.token_texts).answer,
            call_error=None if turn.call is None else turn.call.error,
        )

    def _uncertainty(self, made: CallMade) -> UncertaintyEvent:
        baseline_nats = made.prefix.baseline_entropy_nats
        return UncertaintyEvent(
            trajectory_id=self._trajectory_id,
            turn=self._num_turns,
            baseline_entropy_nats=baseline_nats,
            tool_entropy_nats=made.tool_entropy_nats,
            entropy_increase_nats=made.tool_entropy_nats - baseline_nats,
        )

    def _zoom(self, turn: Turn) -> list[ZoomEvent]:
        call = turn.call
        if call is None or call.tool is None or call.crop is None:
            return []
        box = call.box or Box.whole(self._size)
        return [
            ZoomEvent(
                trajectory_id=self._trajectory_id,
                turn=self._num_turns,
                tool=call.tool,
                window=wire_window(call.window),
                box=wire_box(box),
                box_normalised=normalised(box, self._size),
                crop=call.crop.image,
                crop_url=crop_url(self._case_id, call.crop.image),
                crop_width_px=call.crop.size.width_px,
                crop_height_px=call.crop.size.height_px,
            )
        ]


def closing_events(case: Case) -> list[CaseEvent]:
    """The last events of a final case: what it came to, and that it is done."""
    done = DoneEvent(status=case.status)
    if case.status in (CaseStatus.ANSWERED, CaseStatus.ABSTAINED):
        verification = case.verification
        answer = AnswerEvent(
            answer=case.answer,
            option_text=case.option_text,
            abstention=case.abstention,
            agreement=case.agreement,
            confidence=case.confidence,
            supported=None if verification is None else verification.supported,
        )
        return [answer, done]
    if case.failure is not None:
        return [ErrorEvent(service=case.failure.service, reason=case.failure.reason), done]
    return [done]
