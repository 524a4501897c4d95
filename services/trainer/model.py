# pyright: basic
"""The policy as the trainer computes it: Qwen2.5-VL, log-probabilities of what it sampled.

The figures must be those of the engine: same weights, same pixels, same mRoPE positions, and the
vision placeholders forbidden before the softmax, as the policy server forbids them. Logits are
computed only where a token is trained, and a bounded number of them at a time: over Qwen's 152,064
rows they would otherwise outgrow everything else a step holds. Weights are float32;
`bfloat16` is the arithmetic of the forward pass: autocast in one process, and weights gathered in
bfloat16 where they are sharded. Beside adapters, weights that do not learn are kept in it.
"""

import contextlib
import functools
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint as recomputed

from services.trainer.torchvision_ops import declare_missing_operators

declare_missing_operators()

from transformers import (  # noqa: E402 - the operators must be declared first
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
)

from services.trainer.attention import NAME  # noqa: E402
from services.trainer.batch import BundleImages, PackTensors  # noqa: E402
from services.trainer.sample import ModelLimits  # noqa: E402
from shared.agent.prompt import VISION_PLACEHOLDERS  # noqa: E402
from shared.checkpoint import MODEL_TYPES, check_checkpoint, is_hub_name  # noqa: E402
from shared.errors import WeightsError  # noqa: E402

_ADAPTER = "medvr"
_ADAPTED = r".*language_model\.layers\..*\.(q|k|v|o|gate|up|down)_proj"

LOGITS_AT_ONCE = 2**26
"""256 MiB in float32: 441 tokens of Qwen's vocabulary, more than any batch of a small one."""


def resolve_checkpoint(model: str) -> Path:
    """The folder of a checkpoint, fetched from the hub if `model` is a hub name.

    Raises `WeightsError` if it is none.
    """
    folder = Path(model)
    if is_hub_name(model):
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(model))
    check_checkpoint(folder)
    return folder


def skeleton(checkpoint: Path) -> PreTrainedModel:
    """A model without weights; it knows how its checkpoints are written."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(checkpoint))


def read_limits(checkpoint: Path, model: PreTrainedModel) -> ModelLimits:
    """What the model can be given, and the ids of the tokens it must not sample."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    vocabulary = tokenizer.get_vocab()
    forbidden = frozenset(vocabulary[t] for t in VISION_PLACEHOLDERS if t in vocabulary)
    text = model.config.get_text_config()
    return ModelLimits(
        vocabulary_size=text.vocab_size,
        max_tokens=text.max_position_embeddings,
        image_token_id=model.config.image_token_id,
        forbidden_token_ids=forbidden,
    )


def fit_for_trees(model: PreTrainedModel) -> None:
    """Let the text model see trees; without one it attends as sdpa does."""
    patches = model.model.visual.patch_embed
    patches.forward = functools.partial(_embed_patches, patches.proj)
    model.model.language_model.config._attn_implementation = NAME


class Policy(nn.Module):
    """π_θ, or π_ref when frozen."""

    def __init__(
        self,
        model: PreTrainedModel,
        limits: ModelLimits,
        dtype: torch.dtype,
        *,
        logits_at_once: int = LOGITS_AT_ONCE,
    ) -> None:
        super().__init__()
        self.model = model
        self.limits = limits
        self._dtype = dtype
        self._has_adapters = False
        self._tokens_at_once = max(1, logits_at_once // limits.vocabulary_size)
        forbidden = torch.tensor(sorted(limits.forbidden_token_ids), dtype=torch.long)
        self.register_buffer("_forbidden", forbidden, persistent=False)

    @classmethod
    def load(
        cls,
        checkpoint: Path,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        *,
        gradient_checkpointing: bool = False,
    ) -> "Policy":
        """Read a checkpoint in float32. Raises `WeightsError` if it is no Qwen2.5-VL."""
        try:
            model = AutoModelForImageTextToText.from_pretrained(
                checkpoint, dtype=torch.float32, attn_implementation="sdpa"
            )
        except (OSError, ValueError) as error:
            raise WeightsError(f"{checkpoint} is not a loadable checkpoint: {error}") from error
        if model.config.model_type not in MODEL_TYPES:
            raise WeightsError(
                f"{checkpoint} is a {model.config.model_type}; accepted: {', '.join(MODEL_TYPES)}"
            )
        fit_for_trees(model)
        model.eval()
        if gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.train()
        return cls(model, read_limits(checkpoint, model), dtype).to(device)

    @property
    def trains_vision(self) -> bool:
        """Whether the vision tower learns too."""
        return any(p.requires_grad for p in self.model.model.visual.parameters())

    @property
    def is_frozen(self) -> bool:
        """Whether nothing of it learns."""
        return not any(p.requires_grad for p in self.parameters())

    def freeze(self) -> "Policy":
        """Turn this into a reference that is never trained."""
        self.requires_grad_(requires_grad=False)
        self.eval()
        return self

    def freeze_vision(self) -> None:
        """Leave the vision tower, merger included, as it is."""
        self.model.model.visual.requires_grad_(requires_grad=False)

    def add_adapters(self, rank: int, alpha: int) -> None:
        """Train LoRA adapters on the text blocks' linear layers instead of the weights.

        What stays as it is is kept in the arithmetic's width; adapters are float32.
        """
        for frozen in self.model.parameters():
            frozen.data = frozen.data.to(self._dtype)
        from peft import LoraConfig  # takes seconds, and few runs have adapters

        adapters = LoraConfig(r=rank, lora_alpha=alpha, target_modules=_ADAPTED, bias="none")
        self.model.add_adapter(adapters, _ADAPTER)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad = ".lora_" in name
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        self._has_adapters = True

    @contextlib.contextmanager
    def without_adapters(self) -> Generator[None]:
        """As it was before any training, if it has adapters."""
        if not self._has_adapters:
            yield
            return
        self.model.disable_adapters()
        try:
            yield
        finally:
            self.model.enable_adapters()

    def exported(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Each weight of the plain checkpoint, whole and with its adapter merged; by all ranks."""
        state = self.model.state_dict()
        is_tied = self.model.config.tie_word_embeddings
        for name, tensor in state.items():
            if ".lora_" in name or (is_tied and name == "lm_head.weight"):
                continue
            whole = _whole(tensor)
            stem, adapted, _ = name.partition(".base_layer.weight")
            if adapted:
                layer: Any = self.model.get_submodule(stem)
                up, down = (_whole(state[f"{stem}.lora_{x}.{_ADAPTER}.weight"]) for x in "BA")
                whole = whole.float() + layer.scaling[_ADAPTER] * (up @ down)
            yield name.replace(".base_layer.", "."), whole.to(dtype)

    def image_features(self, images: BundleImages) -> Tensor | None:
        """What the vision tower says of each image once, (F, D), float32 or wider; None of none."""
        if not images.rows_by_name:
            return None
        with self._arithmetic():
            features = self.model.model.get_image_features(images.pixel_values, images.grid_thw)
        features_FD = torch.cat(list(features.pooler_output))
        return features_FD.float() if _is_half(features_FD) else features_FD

    def trained_logprobs(self, pack: PackTensors, features_FD: Tensor | None) -> Tensor:
        """ln π of every trajectory's trained tokens given all before them, (N,), float32 or wider.

        Computed once for each distinct token.
        """
        with self._arithmetic():
            hidden_LD = self._hidden(pack, features_FD)
        targets_U = pack.input_ids_L[pack.tokens_U]
        return self.token_logprobs(hidden_LD[pack.before_U], targets_U)[pack.distinct_N]

    def token_logprobs(self, before_UD: Tensor, targets_U: Tensor) -> Tensor:
        """ln π of targets, given the hidden states before them; a bounded number at a time."""
        if len(targets_U) <= self._tokens_at_once:
            return self._logprobs(before_UD, targets_U)
        pieces = zip(
            before_UD.split(self._tokens_at_once),
            targets_U.split(self._tokens_at_once),
            strict=True,
        )
        return torch.cat(
            [recomputed(self._logprobs, *piece, use_reentrant=False) for piece in pieces]
        )

    def _logprobs(self, before_UD: Tensor, targets_U: Tensor) -> Tensor:
        with self._arithmetic():
            logits_UV = self.model.lm_head(before_UD)
        if _is_half(logits_UV):
            logits_UV = logits_UV.float()
        logits_UV = logits_UV.index_fill(1, self._forbidden, float("-inf"))
        chosen_U = logits_UV.gather(1, targets_U[:, None])[:, 0]
        return chosen_U - torch.logsumexp(logits_UV, dim=1)

    def _arithmetic(self) -> contextlib.AbstractContextManager:
        device_type = next(self.parameters()).device.type
        if self._dtype is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(device_type, dtype=self._dtype)

    def _hidden(self, pack: PackTensors, features_FD: Tensor | None) -> Tensor:
        """Last hidden states (L, D)."""
        embeds_LD = self.model.get_input_embeddings()(pack.input_ids_L)
        if features_FD is not None:
            shown_SD = features_FD[pack.features_S].to(embeds_LD.dtype)
            embeds_LD = embeds_LD.index_copy(0, pack.image_tokens_S, shown_SD)
        return self.model.model.language_model(
            inputs_embeds=embeds_LD[None],
            position_ids=pack.positions_3L[:, None],
            attention_mask={"full_attention": pack.layout},
            use_cache=False,
        ).last_hidden_state[0]


def _embed_patches(convolution: nn.Conv3d, patches: Tensor) -> Tensor:
    """What the vision tower's convolution gives: its stride is its kernel, so one product does.

    On CPU it takes half the time.
    """
    weight = convolution.weight.flatten(1)
    return functional.linear(patches.reshape(-1, weight.shape[1]).to(weight.dtype), weight)


def _whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which each rank has a part."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _is_half(values: Tensor) -> bool:
    return values.dtype in (torch.bfloat16, torch.float16)
