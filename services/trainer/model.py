# pyright: basic
"""The policy as the trainer computes it: Qwen2.5-VL, log-probabilities of what it sampled.

The figures must be those of the engine: same weights, same pixels, same mRoPE positions, and the
vision placeholders forbidden before the softmax, as the policy server forbids them. Logits are
computed only where a token is trained, and a bounded number of them at a time: over Qwen's 152,064
rows they would otherwise outgrow everything else a step holds. Weights are float32 throughout;
`bfloat16` is the arithmetic of the forward pass (autocast).
"""

import contextlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from services.trainer.torchvision_ops import declare_missing_operators

declare_missing_operators()

from transformers import (  # noqa: E402 - the operators must be declared first
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
)

from services.trainer.batch import MicroBatch  # noqa: E402
from services.trainer.sample import ModelLimits  # noqa: E402
from shared.agent.prompt import VISION_PLACEHOLDERS  # noqa: E402
from shared.checkpoint import MODEL_TYPES, check_checkpoint, is_hub_name  # noqa: E402
from shared.errors import WeightsError  # noqa: E402

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
        model.eval()
        if gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.train()
        return cls(model, read_limits(checkpoint, model), dtype).to(device)

    def freeze(self) -> "Policy":
        """Turn this into a reference that is never trained."""
        self.requires_grad_(requires_grad=False)
        self.eval()
        return self

    def trained_logprobs(self, micro_batch: MicroBatch) -> Tensor:
        """ln π of every trained token given all before it, shape (N,), float32 or wider."""
        with self._arithmetic():
            hidden_BLD = self._hidden(micro_batch)
        before_ND = hidden_BLD[micro_batch.rows_N, micro_batch.columns_N - 1]
        targets_N = micro_batch.input_ids_BL[micro_batch.rows_N, micro_batch.columns_N]
        if len(targets_N) <= self._tokens_at_once:
            return self._logprobs(before_ND, targets_N)
        pieces = zip(
            before_ND.split(self._tokens_at_once),
            targets_N.split(self._tokens_at_once),
            strict=True,
        )
        return torch.cat(
            [recomputed(self._logprobs, *piece, use_reentrant=False) for piece in pieces]
        )

    def _logprobs(self, before_ND: Tensor, targets_N: Tensor) -> Tensor:
        """ln π of the targets, given the hidden states before them."""
        with self._arithmetic():
            logits_NV = self.model.lm_head(before_ND)
        if logits_NV.dtype in (torch.bfloat16, torch.float16):
            logits_NV = logits_NV.float()
        logits_NV = logits_NV.index_fill(1, self._forbidden, float("-inf"))
        chosen_N = logits_NV.gather(1, targets_N[:, None])[:, 0]
        return chosen_N - torch.logsumexp(logits_NV, dim=1)

    def _arithmetic(self) -> contextlib.AbstractContextManager:
        device_type = next(self.parameters()).device.type
        if self._dtype is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(device_type, dtype=self._dtype)

    def _hidden(self, micro_batch: MicroBatch) -> Tensor:
        """Last hidden states (B, L, D). Each distinct image is encoded once."""
        embeds_BLD = self.model.get_input_embeddings()(micro_batch.input_ids_BL)
        if len(micro_batch.image_order):
            features = self._shown_features(micro_batch).to(embeds_BLD.dtype)
            embeds_BLD = embeds_BLD.masked_scatter(micro_batch.image_mask_BL[..., None], features)
        position_ids, _ = self.model.model.get_rope_index(
            micro_batch.input_ids_BL,
            mm_token_type_ids=micro_batch.image_mask_BL.int(),
            image_grid_thw=micro_batch.grid_thw[micro_batch.image_order],
            attention_mask=micro_batch.attention_mask_BL,
        )
        return self.model.model.language_model(
            inputs_embeds=embeds_BLD,
            position_ids=position_ids,
            attention_mask=None,
            use_cache=False,
        ).last_hidden_state

    def _shown_features(self, micro_batch: MicroBatch) -> Tensor:
        """Features of all shown images in reading order, gathered from the distinct ones."""
        distinct = self.model.model.get_image_features(
            micro_batch.pixel_values, micro_batch.grid_thw
        ).pooler_output
        return torch.cat([distinct[index] for index in micro_batch.image_order.tolist()])
