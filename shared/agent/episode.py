"""One attempt at a problem: the policy writes a turn, the environment answers, until it is over.

Tokens in, tokens out: text is sent once, as text, and every later request carries the token ids
that the server returned for it; an image is always sent as an image. Hence the record:

* The ids of an observation are learnt with the next response, so every observation on record was
  followed by a generation. The last allowed turn's call is parsed and placed but not executed
  (nothing would be sampled after it), and an observation that does not fit the context is not
  made; in both cases `ToolCall.crop` is None and the box does not count for CCA.
* H_base is fixed at the trajectory's first parseable call (METHOD.md, EVR); without one it is
  taken over the first `window` of all tokens. A branch inherits it.
* A dead policy or zoom server raises its `BoundaryError` out of `run_episode`; whatever the
  policy wrote never does.
"""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain

import msgspec

from shared.agent.entropy import baseline_entropy_nats, tool_entropy_nats
from shared.agent.environment import Environment, Observation, Policy, Zoom
from shared.agent.opened import OpenedProblem
from shared.agent.parser import ParsedTurn, parse_turn
from shared.agent.prompt import TURN_STOPS
from shared.agent.tools import BadWindow, Look, ZoomArguments, tools_named
from shared.agent.transcript import Transcript, first_tokens, generation_of, joined
from shared.api.policy import GenerateRequest, GenerateResponse, Segment
from shared.errors import NoGreyLevels
from shared.geometry import BadBox
from shared.trajectory import (
    ForkOrigin,
    FormatFacts,
    Generation,
    ImageSpan,
    StopReason,
    ToolCall,
    Trajectory,
    Turn,
    WindowArguments,
)

LEAST_TURN_TOKENS = 16
"""An observation fits if at least so many tokens are left for the turn after it."""


class EpisodeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How an attempt is sampled."""

    max_turns: int
    max_turn_tokens: int
    temperature: float = 1.0
    """1 for training (METHOD.md, The agent); 0 is greedy."""


class Prefix(msgspec.Struct, frozen=True, kw_only=True):
    """What a branch inherits: its parent up to, but without, the first argument of a call."""

    parent_id: str
    turns: list[Turn]
    """Whole turns, with their observations."""
    generation: Generation
    """The first tokens of the turn in which it is cut."""
    baseline_entropy_nats: float


class CallMade(msgspec.Struct, frozen=True, kw_only=True):
    """A parseable call, told as soon as it is written and before it is executed."""

    trajectory_id: str
    call_index: int
    is_resampled: bool
    """Whether this is the call for whose sake a branch was cut."""
    num_sampled_tokens: int
    """In the trajectory, through the end of this turn."""
    tool_entropy_nats: float
    """H_tool."""
    prefix: Prefix
    """What a branch cut at this call inherits."""


OnCall = Callable[[CallMade], None]
OnTurn = Callable[[Turn], Awaitable[None]]


def turn_seed(seed: int, turn_index: int) -> int:
    """Sampling seed of one turn: two turns must not draw the same random numbers."""
    digest = hashlib.sha256(f"{seed}:{turn_index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


async def run_episode(
    policy: Policy,
    zoom: Zoom,
    opened: OpenedProblem,
    *,
    trajectory_id: str,
    seed: int,
    settings: EpisodeSettings,
    prefix: Prefix | None = None,
    origin: ForkOrigin = ForkOrigin.BASE,
    on_call: OnCall | None = None,
    on_turn: OnTurn | None = None,
) -> Trajectory:
    """Attempt a problem, from the start or from a branch's `prefix`.

    `on_call` sees every parseable call at once. `on_turn` is awaited after each turn, once its
    call is answered; the token ids of what it is then shown are not known yet, so the turn's
    `observation` is empty and a crop's `token_ids` are too. Raises `PolicyError`, `ZoomError`.
    """
    episode = _Episode(policy, zoom, opened, trajectory_id, seed, settings, prefix, on_call)
    stop_reason = None
    while stop_reason is None:
        stop_reason = await episode.take_turn()
        if on_turn is not None:
            await on_turn(episode.turns[-1])
    return episode.record(stop_reason, origin)


class _Episode:
    def __init__(
        self,
        policy: Policy,
        zoom: Zoom,
        opened: OpenedProblem,
        trajectory_id: str,
        seed: int,
        settings: EpisodeSettings,
        prefix: Prefix | None,
        on_call: OnCall | None,
    ) -> None:
        self._policy = policy
        self._opened = opened
        self._environment = Environment(zoom, opened)
        self._tools = tools_named(opened.tools)
        self._trajectory_id = trajectory_id
        self._seed = seed
        self._settings = settings
        self._prefix = prefix
        self._on_call = on_call
        self.turns: list[Turn] = [] if prefix is None else list(prefix.turns)
        self._transcript = Transcript(opened.prompt)
        self._begun = None if prefix is None else prefix.generation
        self._pending: Sequence[Segment] = () if opened.prompt else opened.prompt_segments
        self._pending_tokens = 0
        self._baseline = None if prefix is None else prefix.baseline_entropy_nats
        self._answer: str | None = None
        self._is_well_formed = True
        for turn in self.turns:
            self._transcript.add_turn(turn)
            self._is_well_formed &= parse_turn(turn.generation.token_texts).is_well_formed
        if self._begun is not None:
            self._transcript.add_tokens(self._begun.token_ids)

    async def take_turn(self) -> StopReason | None:
        """Sample one turn and answer its call; the reason to stop, if there is one."""
        generation = await self._sample()
        parsed = parse_turn(generation.token_texts, self._tools)
        self._is_well_formed &= parsed.is_well_formed
        if parsed.call is not None:
            return await self._answer_call(generation, parsed)
        self.turns.append(Turn(generation=generation))
        self._answer = parsed.answer
        if parsed.answer is not None:
            return StopReason.ANSWERED
        limited = generation.hit_token_limit
        return StopReason.TURN_TOKEN_LIMIT if limited else StopReason.NO_TOOL_NO_ANSWER

    def record(self, stop_reason: StopReason, origin: ForkOrigin) -> Trajectory:
        """The finished trajectory."""
        entropies = self._entropies()
        baseline = self._baseline
        if baseline is None:
            baseline = baseline_entropy_nats(entropies, len(entropies))
        prefix = self._prefix
        return Trajectory(
            trajectory_id=self._trajectory_id,
            origin=origin,
            parent_id=None if prefix is None else prefix.parent_id,
            forked_at_turn=None if prefix is None else len(prefix.turns),
            forked_at_token=None if prefix is None else len(prefix.generation.token_ids),
            seed=self._seed,
            turns=self.turns,
            stop_reason=stop_reason,
            answer=self._answer,
            format_facts=FormatFacts(
                is_well_formed=self._is_well_formed,
                all_calls_parsed=all(t.call is None or t.call.error is None for t in self.turns),
                has_answer=self._answer is not None,
            ),
            baseline_entropy_nats=baseline,
        )

    # -- one turn -----------------------------------------------------------------------------

    async def _sample(self) -> Generation:
        """Send what is new, receive the turn; the pending texts now have their token ids."""
        begun = self._begun
        num_begun = 0 if begun is None else len(begun.token_ids)
        max_tokens = self._settings.max_turn_tokens - num_begun
        if self._transcript.segments:
            max_tokens = min(max_tokens, self._room(self._pending_tokens))
        request = GenerateRequest.model_construct(
            segments=[*self._transcript.segments, *self._pending],
            max_tokens=max_tokens,
            temperature=self._settings.temperature,
            seed=turn_seed(self._seed, len(self.turns)),
            stop=list(TURN_STOPS),
            stream=False,
        )
        response = await self._policy.generate(request)
        self._learn_pending(response)
        self._transcript.add_tokens(response.token_ids)
        self._begun = None
        generation = generation_of(response)
        return generation if begun is None else joined(begun, generation)

    def _learn_pending(self, response: GenerateResponse) -> None:
        """Put what was sent as text or image on record, with the ids the server returned."""
        if not self._pending:
            return
        token_ids = response.segment_token_ids[-len(self._pending) :]
        if not self.turns:
            sizes = [self._opened.view_size, *self._opened.history_sizes]
            spans = self._transcript.add_answered(self._pending, token_ids, sizes)
            if self._opened.prompt is None:
                self._opened.prompt = spans
        else:
            turn = self.turns[-1]
            call = turn.call
            crop = None if call is None else call.crop
            sizes = [] if crop is None else [crop.size]
            spans = self._transcript.add_answered(self._pending, token_ids, sizes)
            if call is not None and crop is not None:
                shown = next(span for span in spans if isinstance(span, ImageSpan))
                call = msgspec.structs.replace(call, crop=shown)
            self.turns[-1] = Turn(generation=turn.generation, call=call, observation=spans)
        self._pending, self._pending_tokens = (), 0

    async def _answer_call(self, generation: Generation, parsed: ParsedTurn) -> StopReason | None:
        call, look = self._read_call(parsed)
        self._tell_call(call, generation)
        if len(self.turns) + 1 >= self._settings.max_turns:
            self.turns.append(Turn(generation=generation, call=call))
            return StopReason.MAX_TURNS
        call, observation = await self._observe(call, look)
        self.turns.append(Turn(generation=generation, call=call))
        if observation is None:
            return StopReason.CONTEXT_FULL
        self._pending, self._pending_tokens = observation.segments, observation.most_tokens
        return None

    def _read_call(self, parsed: ParsedTurn) -> tuple[ToolCall, Look | None]:
        """The call, not yet executed, and the picture it asks for (None if it is bad)."""
        written = parsed.call
        assert written is not None
        look, error = None, written.error
        if written.tool is not None and written.arguments is not None:
            try:
                look = self._environment.plan(written.tool, written.arguments, self._window())
            except (BadBox, BadWindow) as bad:
                error = str(bad)
        arguments = written.arguments
        asked = arguments if isinstance(arguments, WindowArguments) else None
        call = ToolCall(
            index=sum(turn.call is not None for turn in self.turns),
            tool=written.tool,
            first_coordinate_token=parsed.first_coordinate_token,
            end_token=parsed.end_token,
            bbox_2d=arguments.bbox_2d if isinstance(arguments, ZoomArguments) else None,
            box=None if look is None else look.box,
            window=asked if look is None else look.window,
            crop=None,
            error=error,
            fork=None,
        )
        return call, look

    def _window(self) -> WindowArguments | None:
        """The window in force: that of the last picture shown."""
        calls = [turn.call for turn in self.turns if turn.call is not None]
        return next((call.window for call in reversed(calls) if call.crop is not None), None)

    async def _observe(
        self, call: ToolCall, look: Look | None
    ) -> tuple[ToolCall, Observation | None]:
        """Execute the call; no observation if it does not fit the context whole."""
        if look is not None and self._fits(self._environment.most_tokens_of(look)):
            try:
                shown = await self._environment.show(look)
            except (BadBox, NoGreyLevels) as bad:
                call = msgspec.structs.replace(call, box=None, error=str(bad))
            else:
                return msgspec.structs.replace(call, crop=shown.crop), shown
        if call.error is None:
            return call, None
        told = self._environment.tell(call.error)
        return call, told if self._fits(told.most_tokens) else None

    def _tell_call(self, call: ToolCall, generation: Generation) -> None:
        """Fix H_base at the first parseable call, and tell `on_call` of this one."""
        first, end = call.first_coordinate_token, call.end_token
        if first is None or end is None:
            return
        earlier = self._entropies()
        if self._baseline is None:
            self._baseline = baseline_entropy_nats(
                earlier + generation.entropies_nats, len(earlier) + first
            )
        if self._on_call is None:
            return
        prefix = self._prefix
        self._on_call(
            CallMade(
                trajectory_id=self._trajectory_id,
                call_index=call.index,
                is_resampled=prefix is not None and len(self.turns) == len(prefix.turns),
                num_sampled_tokens=len(earlier) + len(generation.token_ids),
                tool_entropy_nats=tool_entropy_nats(generation.entropies_nats[first:end]),
                prefix=Prefix(
                    parent_id=self._trajectory_id,
                    turns=list(self.turns),
                    generation=first_tokens(generation, first),
                    baseline_entropy_nats=self._baseline,
                ),
            )
        )

    # -- bookkeeping --------------------------------------------------------------------------

    def _room(self, num_tokens: int) -> int:
        """Tokens left in the context after `num_tokens` more."""
        return self._opened.limits.max_model_len_tokens - self._transcript.num_tokens - num_tokens

    def _fits(self, num_tokens: int) -> bool:
        return self._room(num_tokens) >= LEAST_TURN_TOKENS

    def _entropies(self) -> list[float]:
        return list(chain.from_iterable(turn.generation.entropies_nats for turn in self.turns))
