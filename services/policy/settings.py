"""Settings of the policy server: what it serves, where it listens, how much it may use."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from shared.service.settings import RedisUrl, ServiceSettings, settings_config
from shared.transfer import TransferChoice

Channel = Literal["none", "policy:train", "policy:clinic"]


class PolicySettings(ServiceSettings):
    """Serve a vision-language policy: stock `vllm serve` with MedVR's plugins."""

    model_config = settings_config("policy")

    model: str = Field(min_length=1)
    """Checkpoint folder (or hub name) to serve first."""
    served_model_name: str = "medvr-policy"
    """Name of the model on the OpenAI-compatible routes."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8100, ge=1, le=65535)
    """Port to listen on."""
    blob_url: str = ".medvr/blobs"
    """Root of the blob store that image segments name: a folder or an fsspec URL."""
    channel: Channel = "none"
    """Weights channel to follow; `none` serves the first checkpoint for ever."""
    redis_url: RedisUrl = "redis://127.0.0.1:6379/0"
    """Where the channel key lives."""
    poll_interval_s: float = Field(default=0.5, gt=0)
    """Seconds between two looks at the channel key."""
    weight_transfer: TransferChoice = "auto"
    """Receive versions that a trainer sends: `nccl` between GPUs, `gloo` between CPUs, `files`
    never; `auto` is nccl with vLLM's CUDA build, else files. What is not sent is read."""
    max_model_len: int | None = Field(default=None, ge=16)
    """Context in tokens; unset means the model's own."""
    max_num_seqs: int = Field(default=64, ge=1)
    """Requests that are decoded together."""
    max_images: int = Field(default=8, ge=1)
    """Most images in one prompt."""
    image_cache_gib: float = Field(default=4.0, gt=0)
    """Shared memory for processed images (/dev/shm; containers have 64 MiB unless told); it is
    taken as it is filled and must hold those of all running requests."""
    kv_cache_mib: int = Field(default=512, ge=16)
    """Memory for the KV cache on CPU, MiB; on a GPU vLLM sizes it itself."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights and activations; `auto` is the checkpoint's own."""
    threads: int = Field(default=2, ge=1)
    """CPU threads of the model."""
    block_size: int = Field(default=32, ge=1)
    """Tokens of a KV block: the grain of the prefix cache."""
    seed: int = Field(default=0, ge=0)
    """Seed of requests that bring none."""
    entropies: bool = True
    """Compute exact entropies. False exists for the benchmark of their cost and reports zeros."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs that share the model."""

    @property
    def checkpoint(self) -> Path:
        """The first checkpoint as a folder."""
        return Path(self.model)
