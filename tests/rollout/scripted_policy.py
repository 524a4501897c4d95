"""A policy server that speaks the wire contract and samples from a script instead of a model.

It is a real HTTP server over the real blob store. What it says is looked up by the request's seed,
which the agent loop derives from trajectory and turn; a seed without a script is improvised from
that seed alone. So what it says never depends on who asked first, and any delay may be put in
front of it. A token is a control token, a tag, a word, a digit or a single other character.
"""

import hashlib
import io
import random
import re
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from fastapi import FastAPI, Response
from PIL import Image

from services.rollout.group import trajectory_seed
from shared.agent.episode import turn_seed
from shared.api.policy import (
    GenerateRequest,
    GenerateResponse,
    ImageSegment,
    PolicyDescription,
    Segment,
    TextSegment,
    TokensSegment,
    WirePixelLimits,
    WireVersionSpan,
)
from shared.blobs import BlobStore
from shared.service.problems import problem_response

_PIECE = re.compile(r"<\|[a-z_]+\|>|</?[a-z_]+>|\d|[A-Za-z_]+|.", re.DOTALL)
_BOX_BEGUN = '"bbox_2d": ['
VISION_START, IMAGE_PAD, VISION_END = 1, 2, 3

VIEW = WirePixelLimits(min_pixels=168 * 168, max_pixels=168 * 168)
CROP = WirePixelLimits(min_pixels=84 * 84, max_pixels=168 * 168)


class Word(NamedTuple):
    """One token to be sampled, and the entropy of the distribution it is drawn from."""

    text: str
    nats: float


def words(text: str, nats: float) -> list[Word]:
    return [Word(piece, nats) for piece in _PIECE.findall(text)]


def look(box: tuple[int, ...], *, before: float = 0.25, inside: float = 0.5) -> list[Word]:
    """A turn that zooms; the entropies are those of its tokens around and in the box."""
    call = f'<tool_call>{{"name": "zoom_in", "arguments": {{{_BOX_BEGUN}'
    return words(f"<think>look closer</think>{call}", before) + rest_of_look(box, inside=inside)


def rest_of_look(box: tuple[int, ...], *, inside: float = 0.5) -> list[Word]:
    """The same turn from its first coordinate on: what a branch samples."""
    return words(", ".join(map(str, box)) + "]", inside) + words("}}</tool_call>", 0.0)


def set_window(
    center: float, width: float, *, before: float = 0.25, inside: float = 0.5
) -> list[Word]:
    """A turn that sets a window; the entropies are those around and in its arguments."""
    call = '<tool_call>{"name": "set_window", "arguments": {"center": '
    return words(f"<think>too white</think>{call}", before) + rest_of_window(
        center, width, inside=inside
    )


def rest_of_window(center: float, width: float, *, inside: float = 0.5) -> list[Word]:
    """The same turn from its first argument on."""
    return words(f'{center:g}, "width": {width:g}', inside) + words("}}</tool_call>", 0.0)


def answer(text: str, nats: float = 0.25) -> list[Word]:
    """A turn that answers."""
    return words(f"<think>clear now</think><answer>{text}</answer>", nats)


def token_id(piece: str) -> int:
    return 1000 + int.from_bytes(hashlib.sha256(piece.encode()).digest()[:4], "big")


def improvise(seed: int, is_box_begun: bool) -> list[Word]:
    """A turn made up from a seed alone: zooms more often than not, surprised now and then."""
    source = random.Random(seed)
    x, y = source.randrange(0, 120), source.randrange(0, 120)
    box = (x, y, x + 42, y + 42)
    inside = source.choice([0.1, 0.4, 0.8, 1.5])
    if is_box_begun:
        return rest_of_look(box, inside=inside)
    if source.random() < 0.55:
        return look(box, before=source.uniform(0.1, 0.6), inside=inside)
    return answer(source.choice("AAAB"))


@dataclass
class ScriptedPolicy:
    """The script, and what was asked."""

    blobs: BlobStore
    scripts: dict[int, list[Word]] = field(default_factory=dict)
    improvise: Callable[[int, bool], list[Word]] = improvise
    before_turn: Callable[[int], Awaitable[None]] | None = None
    """Awaited before a turn is answered, with its seed."""
    failures: deque[int] = field(default_factory=deque)
    """Statuses to answer the next turns with."""
    run: str = "base"
    """Training run of the weights."""
    version: int = 3
    tools: list[str] = field(default_factory=lambda: ["zoom_in"])
    max_model_len_tokens: int = 100_000
    requests: list[GenerateRequest] = field(default_factory=list)
    num_described: int = 0
    pieces: dict[int, str] = field(default_factory=dict)

    def rehearse(self, trajectory_id: str, *turns: list[Word], first_turn: int = 0) -> None:
        """What a trajectory says in its turns; a branch's first one begins inside the box."""
        seed = trajectory_seed(trajectory_id)
        for index, turn in enumerate(turns, start=first_turn):
            self.scripts[turn_seed(seed, index)] = turn

    def describe(self) -> PolicyDescription:
        return PolicyDescription(
            model="scripted",
            run=self.run,
            version=self.version,
            weights_sha256="a" * 64,
            channel=None,
            entropy_mode="exact",
            tools=self.tools,
            view=VIEW,
            crop=CROP,
            min_side_px=28,
            max_turns=5,
            max_model_len_tokens=self.max_model_len_tokens,
            max_images=8,
            max_entropy_tokens=512,
            vllm_version="none",
        )

    async def generate(self, request: GenerateRequest) -> GenerateResponse:
        self.requests.append(request)
        assert request.seed is not None
        segment_ids = [self.encode(segment) for segment in request.segments]
        if self.before_turn is not None:
            await self.before_turn(request.seed)
        script = self.scripts.get(request.seed)
        if script is None:
            script = self.improvise(request.seed, self._ends_in_box(request.segments[-1]))
        said = script[: request.max_tokens]
        text = "".join(word.text for word in said)
        stops = [stop for stop in request.stop if stop in text]
        is_cut = len(said) < len(script)
        return GenerateResponse(
            segment_token_ids=segment_ids,
            token_ids=[self._id(word.text) for word in said],
            token_texts=[word.text for word in said],
            sampled_logprobs=[-word.nats / 2 for word in said],
            entropies_nats=[word.nats for word in said],
            finish="stop" if stops else "length" if is_cut else "end_of_sequence",
            stop=stops[0] if stops else None,
            version_spans=[WireVersionSpan(version=self.version, num_tokens=len(said))],
            num_cached_tokens=0,
        )

    def encode(self, segment: Segment) -> list[int]:
        """Ids of a segment; an image has as many placeholders as 28-px squares."""
        if isinstance(segment, TextSegment):
            return [self._id(piece) for piece in _PIECE.findall(segment.text)]
        if isinstance(segment, TokensSegment):
            assert not {VISION_START, IMAGE_PAD, VISION_END} & set(segment.token_ids)
            return segment.token_ids
        width, height = Image.open(io.BytesIO(self.blobs.get(segment.image))).size
        return [VISION_START, *[IMAGE_PAD] * ((width // 28) * (height // 28)), VISION_END]

    def _id(self, piece: str) -> int:
        self.pieces[token_id(piece)] = piece
        return token_id(piece)

    def _ends_in_box(self, segment: Segment) -> bool:
        if not isinstance(segment, TokensSegment):
            return False
        return self.text_of(segment.token_ids[-8:]).endswith(_BOX_BEGUN)

    def text_of(self, token_ids: list[int]) -> str:
        return "".join(self.pieces[i] for i in token_ids)


def is_image(segment: Segment) -> bool:
    return isinstance(segment, ImageSegment)


def scripted_app(policy: ScriptedPolicy) -> FastAPI:
    """The routes of the policy server that a rollout uses."""
    app = FastAPI()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/medvr/v1/policy")
    async def describe() -> PolicyDescription:
        policy.num_described += 1
        return policy.describe()

    @app.post("/medvr/v1/generate", response_model=GenerateResponse)
    async def generate(request: GenerateRequest) -> GenerateResponse | Response:
        if policy.failures:
            status = policy.failures.popleft()
            return problem_response(status, "Scripted failure", "as the script says")
        return await policy.generate(request)

    return app
