# pyright: basic
"""TRL's own GRPO step on the samples of a group: `GRPOTrainer.compute_loss` and its backward.

The trainer is TRL's, as it is; the model is the checkpoint as transformers loads it, float32 and
without gradient checkpointing. What a batch holds, how it is padded, split into micro-batches and
put together again is TRL's `_generate_and_score_completions` and `_prepare_inputs`, whose functions
are called here: the prompt padded on the left, all turns and observations after it as completion,
`tool_mask` 0 where the policy sampled nothing, and the images of every trajectory one after the
other, crops that a tool showed included. They are encoded for each trajectory, as TRL does.

Four things were needed for its gradient to be ours:

- `lm_head` gets a bias, frozen, that takes the probability of the vision placeholders: the engine
  forbids them, and TRL has no such setting;
- `use_vllm` is switched on after the trainer was built, because it would start an engine; it is
  what makes TRL weigh tokens by min(π_old/μ, 2);
- images are not resized: zoom has shown them at their final size;
- micro-batches are counted as accumulation steps by hand, as transformers' loop would.

TRL spends a forward pass of its own on π_old wherever it corrects for the engine. `step` leaves it
out, `step_with_old` has it.
"""

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from services.trainer.images import ImageSource
from services.trainer.sample import PROMPT, ModelLimits, TrainingSample
from services.trainer.torchvision_ops import declare_missing_operators

declare_missing_operators()

from datasets import Dataset  # noqa: E402 - the operators must be declared first
from transformers import (  # noqa: E402
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
)

with warnings.catch_warnings():
    # TRL would generate with another version of vLLM, which here generates nothing; what it
    # imports uses deprecated parts of torch.
    warnings.simplefilter("ignore")
    from trl import GRPOConfig, GRPOTrainer
    from trl.trainer.utils import (
        pad,
        split_pixel_values_by_grid,
        split_tensor_dict,
        unsplit_pixel_values_by_grid,
    )

_IMPOSSIBLE = -1e4
"""Of a logit: e to this is 0, and 0 · ln 0 stays out of TRL's entropies."""

Inputs = dict[str, Any]
"""As TRL has it."""


def make_trainer(folder: Path, checkpoint: Path, model: PreTrainedModel, **settings: Any) -> Any:
    """A `GRPOTrainer` that is never told to train: on CPU, float32, the loss of METHOD.md."""
    config = GRPOConfig(
        str(folder),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        beta=0.0,
        epsilon=0.2,
        epsilon_high=0.28,
        **{"loss_type": "grpo", **settings},
    )
    return GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": ["none"]}),
        processing_class=AutoProcessor.from_pretrained(checkpoint),
    )


class TrlStep:
    """One trainer of TRL's, and how samples reach it."""

    def __init__(
        self,
        checkpoint: Path,
        limits: ModelLimits,
        images: ImageSource,
        *,
        is_cap: float,
        group_size: int,
    ) -> None:
        model = AutoModelForImageTextToText.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="sdpa"
        )
        bias = torch.zeros(limits.vocabulary_size)
        bias[sorted(limits.forbidden_token_ids)] = _IMPOSSIBLE
        model.lm_head.bias = nn.Parameter(bias, requires_grad=False)
        with tempfile.TemporaryDirectory() as folder:
            self.trainer = make_trainer(
                Path(folder),
                checkpoint,
                model,
                per_device_train_batch_size=group_size,
                num_generations=group_size,
            )
        self.trainer.use_vllm = True
        self.model: Any = self.trainer.model
        self.model.train()
        self._limits = limits
        self._images = images
        self._is_cap = is_cap
        self._ratios: dict[str, Tensor] = {}

    def prepare(self, groups: Sequence[Sequence[TrainingSample]]) -> None:
        """Compute min(π_old/μ, cap) of every group, so that `step` need not."""
        for group in groups:
            self._ratios[group[0].trajectory_id] = self._ratio(group, self._inputs(group))

    def step(self, groups: Sequence[Sequence[TrainingSample]], micro_batch: int) -> None:
        """Gradient of all groups; π_old/μ is known."""
        for group in groups:
            inputs = self._inputs(group)
            inputs["importance_sampling_ratio"] = self._ratios[group[0].trajectory_id]
            self._backward(inputs, micro_batch, len(groups))

    def step_with_old(self, groups: Sequence[Sequence[TrainingSample]], micro_batch: int) -> None:
        """The same with TRL's forward pass for π_old."""
        for group in groups:
            inputs = self._inputs(group)
            inputs["importance_sampling_ratio"] = self._ratio(group, inputs)
            self._backward(inputs, micro_batch, len(groups))

    def _backward(self, inputs: Inputs, micro_batch: int, num_groups: int) -> None:
        num_parts = len(inputs["prompt_ids"]) // micro_batch
        self.trainer.current_gradient_accumulation_steps = num_groups * num_parts
        parts = split_tensor_dict(split_pixel_values_by_grid(inputs), num_parts)
        for part in map(unsplit_pixel_values_by_grid, parts):
            self.trainer.compute_loss(self.model, part).backward()

    def _ratio(self, group: Sequence[TrainingSample], inputs: Inputs) -> Tensor:
        """What `_generate_and_score_completions` does in its mode `token_truncate`."""
        names = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
        with torch.no_grad():
            old_BC, _, _ = self.trainer._get_per_token_logps_and_entropies(
                self.model,
                torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
                torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
                inputs["completion_ids"].size(1),
                **{name: inputs[name] for name in names},
            )
        trained_BC = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
        sampled_BC = torch.zeros_like(old_BC)
        sampled_BC[trained_BC] = torch.tensor([x for s in group for x in s.sampled_logprobs])
        return torch.exp((old_BC - sampled_BC) * trained_BC).clamp(max=self._is_cap)

    def _inputs(self, group: Sequence[TrainingSample]) -> Inputs:
        """What `_generate_and_score_completions` returns, but for the ratio."""
        cuts = [sample.lineage[PROMPT] for sample in group]
        padding = self.trainer._tokenizer.pad_token_id
        prompts = [torch.tensor(s.input_ids[:at]) for s, at in zip(group, cuts, strict=True)]
        completions = [torch.tensor(s.input_ids[at:]) for s, at in zip(group, cuts, strict=True)]
        sampled = [torch.tensor(s.loss_mask[at:]).long() for s, at in zip(group, cuts, strict=True)]
        prompt_ids = pad(prompts, padding_value=padding, padding_side="left")
        completion_ids = pad(completions, padding_value=padding, padding_side="right")
        shown = torch.cat([prompt_ids, completion_ids], dim=1) == self._limits.image_token_id
        pixel_values, grid_thw = self._images.patches([x.image for s in group for x in s.images])
        return {
            "prompt_ids": prompt_ids,
            "prompt_mask": pad([torch.ones_like(p) for p in prompts], 0, "left"),
            "completion_ids": completion_ids,
            "completion_mask": pad([torch.ones_like(c) for c in completions], 0, "right"),
            "tool_mask": pad(sampled, 1, "right"),
            "advantages": torch.tensor([sample.advantage for sample in group]),
            "num_items_in_batch": torch.tensor(sum(s.num_trained_tokens for s in group)),
            "pixel_values": pixel_values,
            "image_grid_thw": grid_thw,
            "mm_token_type_ids": shown.long(),
            "num_images": [len(sample.images) for sample in group],
        }
