"""The policy service inside vLLM's API server: what is built at start, warmed up, then ready."""

import asyncio
import logging
from http import HTTPStatus

from PIL import Image

from services.policy.fetch import EntropyFetcher
from services.policy.generation import TurnGenerator
from services.policy.images import ImageLoader
from services.policy.metrics import PolicyMetrics
from services.policy.offers import choose_offers
from services.policy.prompts import Prompt, PromptBuilder
from services.policy.scoring import Scorer
from services.policy.settings import PolicySettings
from services.policy.tokens import Vocabulary
from services.policy.vllm_adapter import Engine, forbidden_token_ids, vllm_version
from services.policy.weights import ServedWeights, WeightsFollower, first_weights
from shared.agent.tools import Tool, tools_named
from shared.api.policy import (
    MAX_ENTROPY_TOKENS,
    EntropyRequest,
    GenerateRequest,
    PolicyDescription,
    Segment,
    TextSegment,
    WirePixelLimits,
)
from shared.blobs import BlobStore
from shared.errors import ApiProblem
from shared.geometry import ImageSize, PixelLimits, smart_resize

logger = logging.getLogger(__name__)

_WARM_UP_TEXT = "<|im_start|>user\nA picture.<|im_end|>\n<|im_start|>assistant\n"


class PolicyService:
    """Everything the routes need; built once the engine runs."""

    def __init__(self, engine: Engine, settings: PolicySettings) -> None:
        self._engine = engine
        self._settings = settings
        self._metrics = PolicyMetrics()
        tokenizer = engine.tokenizer
        forbidden = forbidden_token_ids(tokenizer)
        self.vocabulary = Vocabulary(tokenizer, engine.vocab_size, forbidden)
        images = ImageLoader(BlobStore(settings.blob_url), engine.image_limits)
        builder = PromptBuilder(self.vocabulary, images, settings.max_images)
        fetcher = EntropyFetcher(engine.take)
        self.generator = TurnGenerator(
            engine,
            self.vocabulary,
            builder,
            fetcher,
            self._metrics,
            measures_entropies=settings.entropies,
        )
        self.scorer = Scorer(
            engine, self.vocabulary, builder, fetcher, self._metrics, self._served_tools
        )
        self._serving = first_weights(settings.model)
        self.follower: WeightsFollower | None = None
        if settings.channel != "none":
            self.follower = WeightsFollower(
                engine,
                self._serving,
                self._metrics,
                channel=settings.channel,
                redis_url=settings.redis_url,
                poll_interval_s=settings.poll_interval_s,
                offers=choose_offers(settings),
            )
        self._is_warm = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Warm up, then follow the channel, in the background of the running loop."""
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            await self._engine.label_weights(self._serving.version)
            self._metrics.weights_version.set(self._serving.version)
            await self._warm_up()
            self._is_warm = True
            logger.info("warm: serving %s/%d", self._serving.run, self._serving.version)
            if self.follower is not None:
                await self.follower.run()
        except asyncio.CancelledError:
            raise
        except Exception:
            logger.exception("the policy service stopped; the server will not become ready")
            self._engine.shutdown()

    async def _warm_up(self) -> None:
        """One turn with an image and one scored continuation: whatever is built lazily is built."""
        limits = self._engine.image_limits
        size = smart_resize(
            ImageSize(112, 112), PixelLimits(limits.min_pixels, min(limits.max_pixels, 10**6))
        )
        start, pad = self.vocabulary.vision_start_id, self.vocabulary.image_pad_id
        end, text = self.vocabulary.vision_end_id, list(self.vocabulary.encode(_WARM_UP_TEXT))
        image = Image.new("RGB", (size.width_px, size.height_px), (96, 96, 96))
        prompt = Prompt(
            [[start, *[pad] * size.num_image_tokens, end], text],
            [start, pad, end, *text],
            [image],
            ["warm-up"],
        )
        segments: list[Segment] = [TextSegment(text=_WARM_UP_TEXT)]
        turns = [
            GenerateRequest(segments=segments, max_tokens=4, temperature=t) for t in (0.0, 1.0, 1.0)
        ]
        await asyncio.gather(*(self.generator.generate(turn, prompt, "warm-up") for turn in turns))
        if self._settings.entropies:
            request = EntropyRequest(segments=segments, continuation="A picture.")
            await self.scorer.score(request, "warm-up")

    def require_ready(self) -> None:
        """Raise `ApiProblem` (503) with the reason while requests should go elsewhere."""
        reason = None
        if not self._is_warm:
            reason = "warming up"
        elif self.follower is not None and not self.follower.is_caught_up:
            reason = f"catching up with {self._settings.channel}: {self.follower.waiting_for}"
        if reason is not None:
            raise ApiProblem(HTTPStatus.SERVICE_UNAVAILABLE, "Not ready", reason)

    def _served(self) -> ServedWeights:
        return self.follower.serving if self.follower is not None else self._serving

    def _served_tools(self) -> tuple[Tool, ...]:
        return tools_named(self._served().manifest.tools)

    def describe(self) -> PolicyDescription:
        """What is served now."""
        serving = self._served()
        manifest = serving.manifest
        return PolicyDescription(
            model=manifest.name,
            run=serving.run,
            version=serving.version,
            weights_sha256=serving.sha256,
            channel=None if self._settings.channel == "none" else self._settings.channel,
            entropy_mode="exact" if self._settings.entropies else "off",
            tools=manifest.tools,
            view=_wire(manifest.view),
            crop=_wire(manifest.crop),
            min_side_px=manifest.min_side_px,
            max_turns=manifest.max_turns,
            max_model_len_tokens=self._engine.max_model_len,
            max_images=self._settings.max_images,
            max_entropy_tokens=MAX_ENTROPY_TOKENS,
            vllm_version=vllm_version,
        )


def _wire(limits: PixelLimits) -> WirePixelLimits:
    return WirePixelLimits(min_pixels=limits.min_pixels, max_pixels=limits.max_pixels)
