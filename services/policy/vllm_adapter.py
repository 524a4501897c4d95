"""Everything that touches vLLM: the logits processor, the worker extension and the engine.

Only transfer_engine.py imports vllm too, so a new version of it is met here. The contract
test (tests/policy) runs this file against the real engine on CPU. Extension points used:
`--logits-processors`, `--worker-extension-cls`, `--weight-transfer-config`, `vllm.general_plugins`,
`vllm.endpoint_plugins` (services.policy.plugin); engine calls: generate, collective_rpc,
pause/resume_generation, reset_prefix_cache, reset_encoder_cache, update_weight_version and the
renderer.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import torch
from PIL.Image import Image
from vllm import ModelRegistry, SamplingParams, TokensPrompt
from vllm import __version__ as vllm_version
from vllm.config import VllmConfig
from vllm.engine.protocol import EngineClient
from vllm.exceptions import VLLMClientError
from vllm.logprobs import FlatLogprobs
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from vllm.model_executor.models.qwen2_vl import Qwen2VLForConditionalGeneration
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from services.policy.entropy import TABLE, Choice, Chooser, Record
from services.policy.offers import EngineStuck, Seat
from shared.agent.prompt import VISION_PLACEHOLDERS
from shared.errors import WeightsError
from shared.geometry import PixelLimits
from shared.transfer import TensorLayout

__all__ = [
    "Engine",
    "EngineDead",
    "EngineOutput",
    "EntropyLogitsProcessor",
    "MedvrWorker",
    "RejectedByEngine",
    "register_models",
    "vllm_version",
]

_KEY = "medvr_key"
_CHOICE = "medvr_choice"

_GRACE_S = 15.0
"""Beyond a transfer's own limits, for what they do not reach: NCCL's connecting, and loading."""

EngineDead = EngineDeadError
"""The engine has ended; the server follows it, and whatever keeps it starts another."""

RejectedByEngine = VLLMClientError
"""The engine refuses the request as such; the message is fit for the caller."""


def register_models() -> None:
    """Register the models we serve as classes, so that vLLM looks at them in this process.

    By name it would look at them in a process of its own (lest CUDA is initialised here), which
    imports torchvision before any plugin and fails beside a CPU build of torch. Its cache of what
    it found hides that on a machine where it once went well.
    """
    ModelRegistry.register_model(
        "Qwen2_5_VLForConditionalGeneration", Qwen2_5_VLForConditionalGeneration
    )
    ModelRegistry.register_model("Qwen2VLForConditionalGeneration", Qwen2VLForConditionalGeneration)


def forbidden_token_ids(tokenizer: Any) -> list[int]:
    """Ids of the vision placeholders that this tokenizer has."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return sorted(vocabulary[token] for token in VISION_PLACEHOLDERS if token in vocabulary)


class EntropyLogitsProcessor(LogitsProcessor):
    """Forbids the vision placeholders; measures the other requests' rows and chooses for them.

    Sees float32 logits before temperature. Every row is masked; only rows whose request carries a
    key in `extra_args` are measured and chosen for. vLLM then takes the one token that is left.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        del is_pin_memory
        tokenizer = cached_tokenizer_from_config(vllm_config.model_config)
        self._forbidden = torch.tensor(forbidden_token_ids(tokenizer), device=device)
        self._records: dict[int, Record] = {}
        self._chooser = Chooser(TABLE)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse vLLM's own seeds on CPU: at a chunk of a prompt they would end the engine.

        There it turns the request's generator back, which CPU generators cannot.
        """
        if sampling_params.seed is not None and current_platform.is_cpu():
            raise ValueError(
                "seed is not served here by vLLM's CPU build; leave it out, or ask "
                "/medvr/v1/generate, which takes one"
            )

    def is_argmax_invariant(self) -> bool:
        """No: the mask may change the greedy choice, so it runs for greedy requests too."""
        return False

    @staticmethod
    def _begin(
        params: SamplingParams, _: list[int] | None, output_token_ids: list[int]
    ) -> Record | None:
        extra = params.extra_args or {}
        if _KEY not in extra:
            return None
        choice = msgspec.convert(extra[_CHOICE], Choice)
        return TABLE.begin(extra[_KEY], output_token_ids, choice)

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the batch: which request sits in which row."""
        process_dict_updates(self._records, batch_update, self._begin)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Mask, measure, choose; in place."""
        logits.index_fill_(1, self._forbidden, -torch.inf)
        if self._records:
            self._chooser.choose(logits, self._records)
        return logits


class MedvrWorker:
    """Methods added to vLLM's worker (`--worker-extension-cls`), called by `collective_rpc`."""

    def medvr_take(
        self, wanted: list[tuple[str, int, bool]]
    ) -> list[tuple[list[float], list[float]]]:
        """`EntropyTable.take` for many (key, start, final) at once."""
        return [TABLE.take(key, start, final=final) for key, start, final in wanted]

    def medvr_load(self, folder: str) -> None:
        """Load a checkpoint in place."""
        worker = cast(Any, self)
        model = worker.model_runner.get_model()
        try:
            worker.reload_weights(weights_path=folder)
        except Exception:
            # Closes the half-done load, whose pieces would otherwise join those of the next one.
            finalize_layerwise_reload(model, worker.model_config)
            raise
        _pack_heads(model)

    def medvr_receive(self, joining: dict[str, Any], layout: dict[str, Any]) -> None:
        """Load what a trainer sends, in place. Raises `WeightsError` whatever went wrong."""
        worker = cast(Any, self)
        model = worker.model_runner.get_model()
        try:
            worker.init_weight_transfer_engine(joining)
            worker.start_weight_update()
            worker.update_weights(layout)
            worker.finish_weight_update()
        except Exception as error:
            finalize_layerwise_reload(model, worker.model_config)  # as after a load that failed
            raise WeightsError(f"the transfer failed: {error}") from error
        finally:
            worker.weight_transfer_engine.shutdown()
        _pack_heads(model)


def _pack_heads(model: torch.nn.Module) -> None:
    """Pack the head again after a load.

    vLLM's reloading skips a head that is tied to the embedding, but on CPU the head multiplies
    with a packed copy of it: without this every token would be drawn with the old head.
    """
    for module in model.modules():
        if isinstance(module, ParallelLMHead) and isinstance(
            module.quant_method, UnquantizedEmbeddingMethod
        ):
            module.quant_method.process_weights_after_loading(module)


@dataclass(frozen=True, slots=True)
class EngineOutput:
    """What the engine sampled since the last output (everything, when not streaming)."""

    token_ids: list[int]
    logprobs: list[float]
    """vLLM's; empty for measured requests, whose log-probabilities come with the entropies."""
    finish: str | None
    """vLLM's finish reason: stop, length, abort or error; None while it goes on."""
    stop: str | int | None
    """The stop string or stop token."""
    version_spans: list[tuple[int, int]]
    """(version, tokens) of the whole turn; only on the last output."""
    num_cached_tokens: int


class Engine:
    """The running vLLM engine, as the rest of the service sees it."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self.tokenizer: Any = client.renderer.get_tokenizer()
        self.max_model_len: int = client.model_config.max_model_len
        self.vocab_size: int = client.model_config.get_vocab_size()
        if client.vllm_config.use_v2_model_runner:
            raise RuntimeError(
                "services.policy needs vLLM's V1 model runner: set VLLM_USE_V2_MODEL_RUNNER=0"
            )

    async def render(
        self, token_ids: list[int], images: Sequence[Image], names: Sequence[str]
    ) -> Any:
        """The engine's input for a prompt with one placeholder per image.

        `names` identify the images in every cache of vLLM. Raises `RejectedByEngine`.
        """
        prompt = TokensPrompt(prompt_token_ids=token_ids)
        if images:
            prompt["multi_modal_data"] = {"image": list(images)}
            prompt["multi_modal_uuids"] = {"image": list(names)}
        (rendered,) = await self._client.renderer.render_cmpl_async([cast(Any, prompt)])
        return rendered

    async def generate(
        self, rendered: Any, params: SamplingParams, request_id: str
    ) -> AsyncIterator[EngineOutput]:
        """Run a request; one output per step when streaming, else one."""
        async for output in self._client.generate(rendered, params, request_id):
            completion = output.outputs[0]
            logprobs = completion.logprobs
            spans = completion.weight_versions or []
            yield EngineOutput(
                token_ids=list(completion.token_ids),
                logprobs=logprobs.logprobs if isinstance(logprobs, FlatLogprobs) else [],
                finish=completion.finish_reason,
                stop=completion.stop_reason,
                version_spans=[(int(s.version), s.end - s.start) for s in spans],
                num_cached_tokens=output.num_cached_tokens or 0,
            )

    async def take(
        self, wanted: list[tuple[str, int, bool]]
    ) -> list[tuple[list[float], list[float]]]:
        """Entropies and log-probabilities of many requests in one call (`EntropyTable.take`)."""
        per_worker = await self._client.collective_rpc("medvr_take", args=(wanted,))
        return per_worker[0]

    async def label_weights(self, version: int) -> None:
        """Name the weights being served; every sampled token is labelled with it."""
        await self._client.update_weight_version(str(version))

    async def pause(self) -> None:
        """Stop stepping; requests stay, their KV and all encoder outputs are dropped.

        The multimodal *processor* caches are left alone: they hold pixels, which no weights
        touch, and clearing them while callers come in would desynchronise their two halves.
        """
        await self._client.pause_generation(mode="keep", clear_cache=False)
        await self._client.reset_prefix_cache(reset_running_requests=True)

    async def load(self, folder: str) -> None:
        """Load a checkpoint into the paused engine and drop what the old weights had computed."""
        await self._client.collective_rpc("medvr_load", args=(folder,))
        await self._client.reset_encoder_cache()

    async def receive(self, seat: Seat, layout: list[TensorLayout]) -> None:
        """Load into the paused engine what a trainer sends, and drop what the old weights computed.

        Raises whatever went wrong, and `EngineStuck` if the workers do not even come back.
        """
        joining = {"first_rank": seat.first_rank, "start": msgspec.to_builtins(seat.start)}
        update = {"tensors": [tuple(tensor) for tensor in layout]}
        limit_s = seat.start.join_s + seat.start.timeout_s + _GRACE_S
        try:
            async with asyncio.timeout(limit_s):
                await self._client.collective_rpc("medvr_receive", args=(joining, update))
        except TimeoutError as error:
            raise EngineStuck(f"no worker came back from a transfer in {limit_s:.0f} s") from error
        await self._client.reset_encoder_cache()

    async def resume(self) -> None:
        """Go on stepping; kept requests recompute their KV."""
        await self._client.resume_generation()

    def shutdown(self) -> None:
        """Kill the engine; vLLM's server then ends, and a supervisor starts a fresh one."""
        self._client.shutdown()

    @property
    def image_limits(self) -> PixelLimits:
        """Least and most pixels that the engine's processor takes without resizing."""
        info: Any = self._client.renderer.get_mm_processor().info
        size: Any = info.get_image_processor().size
        return PixelLimits(int(size["shortest_edge"]), int(size["longest_edge"]))


def measured_params(
    *,
    key: str,
    max_tokens: int,
    temperature: float,
    seed: int | None,
    stop: list[str],
    stop_token_ids: list[int],
    stream: bool,
) -> SamplingParams:
    """Measured sampling at temperature 1 (METHOD.md: raw, no truncation), or greedily at 0.

    Without a seed a random one is drawn. Stop strings stay in the tokens.
    """
    is_drawn = temperature > 0
    drawn_seed = secrets.randbits(63) if seed is None else seed
    return SamplingParams(
        temperature=0.0,  # one token is left: the chosen one
        max_tokens=max_tokens,
        stop=stop,
        stop_token_ids=stop_token_ids,
        include_stop_str_in_output=True,
        skip_special_tokens=False,
        output_kind=RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY,
        extra_args=_chosen_by(key, Choice(seed=drawn_seed if is_drawn else None)),
    )


def plain_params(
    *,
    max_tokens: int,
    temperature: float,
    stop: list[str],
    stop_token_ids: list[int],
    stream: bool,
) -> SamplingParams:
    """The same without entropies: vLLM's sampler and its log-probabilities. For comparison."""
    return SamplingParams(
        temperature=temperature,
        max_tokens=max_tokens,
        stop=stop,
        stop_token_ids=stop_token_ids,
        include_stop_str_in_output=True,
        skip_special_tokens=False,
        logprobs=0,
        flat_logprobs=True,
        output_kind=RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY,
    )


def forcing_params(*, key: str, token_ids: list[int]) -> SamplingParams:
    """The request takes exactly these tokens, measuring each before it takes it."""
    return SamplingParams(
        temperature=0.0,
        max_tokens=len(token_ids),
        min_tokens=0,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args=_chosen_by(key, Choice(forced_token_ids=token_ids)),
    )


def _chosen_by(key: str, choice: Choice) -> dict[str, Any]:
    return {_KEY: key, _CHOICE: msgspec.to_builtins(choice)}
