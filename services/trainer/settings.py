"""Settings of the trainer: what it trains, on what, how boldly, and where it keeps things."""

import math
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from shared.service.settings import RedisUrl, ServiceSettings, settings_config
from shared.transfer import TransferChoice
from shared.weights import TRAIN_CHANNEL


class TrainerSettings(ServiceSettings):
    """Train a policy by GRPO on the scored trajectory groups of a run."""

    model_config = settings_config("trainer")

    # -- the run --------------------------------------------------------------------------------
    model: str = Field(min_length=1)
    """Checkpoint folder (or hub name) to start from: any Qwen2.5-VL."""
    run: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the training run."""
    run_root: Path = Path(".medvr/runs")
    """Checkpoints and records go to `run_root/<run>`, on storage that all ranks share."""
    weights_root: Path = Path(".medvr/weights")
    """Published versions go to `weights_root/<run>/<version>`; policy replicas must see it."""
    weights_channel: str = TRAIN_CHANNEL
    """Channel key that is pointed at each published version."""
    blob_url: str = ".medvr/blobs"
    """Root of the blob store with the shown images: a folder or an fsspec URL."""
    redis_url: RedisUrl = "redis://127.0.0.1:6379/0"
    """Where the run's stream of groups lives."""
    max_steps: int = Field(default=100, ge=1)
    """Optimizer batches until the run is finished."""

    # -- the batch ------------------------------------------------------------------------------
    groups_per_step: int = Field(default=8, ge=1)
    """Groups with signal in one optimizer batch."""
    max_off_policy_steps: int = Field(default=4, ge=0)
    """A group whose oldest token is more steps behind than this is stale."""
    max_outstanding: int = Field(default=32, ge=1)
    """Bound on groups without a fate; the feeder must be given the same."""
    pack_tokens: int = Field(default=16_384, ge=1)
    """Distinct tokens computed together; changes memory and speed, not the gradient."""

    # -- the loss (METHOD.md, GRPO) -------------------------------------------------------------
    loss: Literal["grpo", "dr_grpo", "dapo", "gspo"] = "grpo"
    """GRPO as in the paper; Dr. GRPO; DAPO's token-level mean; GSPO's ratio per trajectory."""
    advantage_division: bool | None = None
    """Divide a group's centred rewards by their standard deviation (+ 1e-4); unset means yes,
    except for Dr. GRPO, which never does."""
    dr_grpo_tokens: int = Field(default=2560, ge=1)
    """Dr. GRPO's constant in place of a trajectory's length: the most tokens that the policy may
    sample in one; the rollout workers' defaults are five turns of 512."""
    kl_beta: float = Field(default=0.001, ge=0.0)
    """β, weight of the KL to the initial policy; 0 loads no reference."""
    clip_low: float | None = Field(default=None, ge=0.0, lt=1.0)
    """The ratio π_θ/π_old is clipped at 1 − clip_low; unset means 0.2, with GSPO 0.0003. Inert
    while updates_per_batch is 1."""
    clip_high: float | None = Field(default=None, ge=0.0)
    """The ratio π_θ/π_old is clipped at 1 + clip_high; unset means 0.28, with GSPO 0.0004. Inert
    while updates_per_batch is 1."""
    is_cap: float = Field(default=2.0, gt=0.0)
    """Cap of the importance weight π_old/μ of trainer over engine."""
    is_mask_beyond: float = Field(default=math.inf, gt=1.0)
    """A token whose π_old/μ lies outside [1/x, x] adds nothing but its KL; inf leaves none out."""
    updates_per_batch: int = Field(default=1, ge=1)
    """Optimizer updates on one batch. At 1 the ratio is 1 and clipping does nothing."""

    # -- the optimizer --------------------------------------------------------------------------
    lr: float = Field(default=1e-6, gt=0.0)
    """Learning rate after warm-up; 1e-6 suits a 7B model."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises linearly."""
    lr_final_share: float = Field(default=1.0, ge=0.0, le=1.0)
    """Share of `lr` that is left at `max_steps`, falling linearly; 1 keeps it constant."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    """The gradient is scaled down to this 2-norm."""

    # -- durability -----------------------------------------------------------------------------
    checkpoint_every: int = Field(default=1, ge=1)
    """Steps between checkpoints; groups are settled only after one."""
    publish_every: int = Field(default=1, ge=1)
    """Steps between published versions; a multiple of checkpoint_every."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints kept."""
    keep_versions: int = Field(default=4, ge=2)
    """Newest published versions kept."""

    # -- the fast path --------------------------------------------------------------------------
    weight_transfer: TransferChoice = "auto"
    """Send each version to the replicas that can receive it: `nccl` between GPUs, `gloo` between
    CPUs, `files` never; `auto` is nccl on CUDA, else files. Its folder is there in any case."""
    transfer_answer_s: float = Field(default=3.0, gt=0.0)
    """Wait for the answers of replicas that listen, no longer than this."""
    transfer_timeout_s: float = Field(default=60.0, gt=0.0)
    """A transfer that takes longer is off, and the replicas load the folder."""

    # -- the machine ----------------------------------------------------------------------------
    device: str = "cpu"
    """`cpu`, `cuda` or `cuda:N`; under torchrun each process takes its own card of `cuda`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the forward pass; weights and optimizer stay in float32."""
    freeze_vision: bool = False
    """Train the text model only; images are then encoded without a backward pass."""
    lora_rank: int = Field(default=0, ge=0)
    """Train LoRA adapters of this rank on the text blocks' linear layers; 0 trains all weights."""
    lora_alpha: int = Field(default=32, ge=1)
    """An adapter's product is scaled by lora_alpha / lora_rank."""
    cpu_offload: bool = False
    """Keep weights, gradients and optimizer state in host memory between uses; needs `cuda`."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    threads: int = Field(default=2, ge=1)
    """CPU threads of torch."""
    seed: int = Field(default=0, ge=0)
    """Seed of torch's generators."""
    probe_host: str = "127.0.0.1"
    """Address of /health, /ready and /metrics."""
    probe_port: int = Field(default=8105, ge=1, le=65535)
    """Port of /health, /ready and /metrics; under torchrun plus the rank on its host."""

    @model_validator(mode="after")
    def _only_checkpointed_steps_are_published(self) -> Self:
        if self.publish_every % self.checkpoint_every:
            raise ValueError(
                f"publish_every {self.publish_every} must be a multiple of checkpoint_every "
                f"{self.checkpoint_every}: only checkpointed steps are published"
            )
        return self

    @model_validator(mode="after")
    def _dr_grpo_never_divides(self) -> Self:
        if self.loss == "dr_grpo" and self.advantage_division:
            raise ValueError(
                "advantage_division contradicts loss dr_grpo, which is GRPO without it: "
                "leave it unset, or choose loss grpo"
            )
        return self

    @model_validator(mode="after")
    def _only_a_card_has_something_to_offload(self) -> Self:
        if self.cpu_offload and not self.device.startswith("cuda"):
            raise ValueError(f"cpu_offload needs device cuda, here it is {self.device}")
        return self

    @model_validator(mode="after")
    def _adapters_are_set_together(self) -> Self:
        if self.lora_rank and self.freeze_vision:
            raise ValueError(
                "freeze_vision says nothing beside lora_rank: adapters leave all weights alone"
            )
        if not self.lora_rank and "lora_alpha" in self.model_fields_set:
            raise ValueError("lora_alpha is the scale of adapters: set lora_rank too")
        return self

    @property
    def divides_advantages(self) -> bool:
        """Whether centred rewards are divided by their standard deviation."""
        if self.advantage_division is None:
            return self.loss != "dr_grpo"
        return self.advantage_division

    @property
    def clip_bounds(self) -> tuple[float, float]:
        """How far below and above 1 the ratio may go; those of GSPO are from its section 5.1."""
        low, high = (3e-4, 4e-4) if self.loss == "gspo" else (0.2, 0.28)
        return (
            low if self.clip_low is None else self.clip_low,
            high if self.clip_high is None else self.clip_high,
        )

    @property
    def run_folder(self) -> Path:
        """Where this run keeps its checkpoints, TensorBoard files and steps.jsonl."""
        return self.run_root / self.run

    # -- the rehearsal --------------------------------------------------------------------------
    dry_run: bool = False
    """Print settings, tokens, memory and FLOPs of a step, and end; touches nothing. What it assumes
    are flags too: --dry-run --help lists them."""


class DryRunSettings(TrainerSettings):
    """Say what a run would cost: settings, tokens, memory and FLOPs of a step. Trains nothing."""

    # -- what a dry run assumes -----------------------------------------------------------------
    group_size: int = Field(default=16, ge=2)
    """Trajectories of a group (the rollout workers' setting)."""
    branch_share: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Share of them that are branches; 0 for independent trajectories."""
    prompt_text_tokens: int = Field(default=230, ge=1)
    """Text of the prompt: 190 with Qwen's tokenizer, and 40 of question and options."""
    view_pixels: int | None = Field(default=None, ge=1)
    """Pixels of the shown image; unset means the most that the checkpoint's medvr.json allows."""
    crop_pixels: int | None = Field(default=None, ge=1)
    """Pixels of a shown crop; unset means the most that the checkpoint's medvr.json allows."""
    mean_turns: float = Field(default=2.0, ge=1.0)
    """Turns of a trajectory, on average."""
    crops_per_trajectory: float | None = Field(default=None, ge=0.0)
    """Crops shown to a trajectory, on average; unset means one in every turn but the last."""
    response_tokens: float = Field(default=128.0, gt=0.0)
    """Tokens that the policy samples in a turn, on average."""
    observation_text_tokens: int = Field(default=41, ge=0)
    """Text around a crop; 41 with Qwen's tokenizer."""
    world_size: int = Field(default=1, ge=1)
    """Processes that torchrun starts: weights, gradients and optimizer are sharded among them."""
    tflops: float = Field(default=200.0, gt=0.0)
    """TFLOP/s that one process sustains: a fifth of an H100's bfloat16 peak."""

    @property
    def crops(self) -> float:
        """Crops shown to a trajectory, on average."""
        if self.crops_per_trajectory is None:
            return self.mean_turns - 1
        return self.crops_per_trajectory

    @model_validator(mode="after")
    def _crops_answer_turns(self) -> Self:
        if self.crops > self.mean_turns:
            raise ValueError(
                f"crops_per_trajectory {self.crops:g} is over mean_turns {self.mean_turns:g}: "
                "a turn is answered by one crop at most"
            )
        return self
