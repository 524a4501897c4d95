"""From settings to vLLM's command line and environment."""

import json
import os
import tempfile
from pathlib import Path

from services.policy.offers import transfer_backend
from services.policy.plugin import NAME
from services.policy.settings import PolicySettings
from services.policy.version import is_cpu_build

LOGGING_CONFIG = Path(__file__).with_name("logging.json")


_SHARED_MEMORY = Path("/dev/shm")


def image_cache(settings: PolicySettings) -> Path:
    """Shared memory of this server's processed images; its port makes it the only one."""
    return _SHARED_MEMORY / f"medvr_policy_{settings.port}"


def remove_leftovers(settings: PolicySettings) -> None:
    """Give back what a killed predecessor on this port left behind: up to `image_cache_gib`."""
    image_cache(settings).unlink(missing_ok=True)


def vllm_arguments(settings: PolicySettings) -> list[str]:
    """Arguments of `vllm serve`."""
    arguments = [
        *("--model", settings.model),
        *("--served-model-name", settings.served_model_name),
        *("--host", settings.host),
        *("--port", str(settings.port)),
        *("--dtype", _dtype(settings)),
        *("--seed", str(settings.seed)),
        *("--block-size", str(settings.block_size)),
        *("--max-num-seqs", str(settings.max_num_seqs)),
        *("--tensor-parallel-size", str(settings.tensor_parallel_size)),
        *("--limit-mm-per-prompt", json.dumps({"image": settings.max_images, "video": 0})),
        # Log-probabilities of the distribution that is sampled from: after the mask.
        *("--logprobs-mode", "processed_logprobs"),
        *("--generation-config", "vllm"),
        *("--worker-extension-cls", "services.policy.vllm_adapter.MedvrWorker"),
        *("--logits-processors", "services.policy.vllm_adapter:EntropyLogitsProcessor"),
        # A domain nobody can own and a folder with nothing in it: images come as data URLs only.
        *("--allowed-media-domains", "data-urls-only.invalid"),
        *("--allowed-local-media-path", tempfile.mkdtemp(prefix="medvr-no-media-")),
        # Pixels stay with the worker: with the other cache it forgets those of an image whose KV a
        # request found cached, and a swap, which drops that KV, would end the engine.
        *("--mm-processor-cache-type", "shm"),
        *("--mm-processor-cache-gb", str(settings.image_cache_gib)),
        "--no-async-scheduling",
        "--enable-prefix-caching",
        "--disable-uvicorn-access-log",
    ]
    if transfer_backend(settings) is not None:
        arguments += ["--weight-transfer-config", json.dumps({"backend": NAME})]
    if settings.max_model_len is not None:
        arguments += ["--max-model-len", str(settings.max_model_len)]
    if is_cpu_build():
        cache_bytes = settings.kv_cache_mib * 2**20
        arguments += ["--enforce-eager", "--kv-cache-memory-bytes", str(cache_bytes)]
    return arguments


def vllm_environment(settings: PolicySettings) -> dict[str, str]:
    """Environment of vLLM's processes: the settings again (the plugins read them), and its own."""
    environment = dict(os.environ)
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if value is not None:
            environment[f"MEDVR_POLICY_{name.upper()}"] = str(value)
    environment |= {
        "VLLM_PLUGINS": NAME,
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_LOGGING_CONFIG_PATH": str(LOGGING_CONFIG),
        "VLLM_NO_USAGE_STATS": "1",
        # By default a name at random, which nobody could remove after a kill.
        "VLLM_OBJECT_STORAGE_SHM_BUFFER_NAME": image_cache(settings).name,
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(settings.threads),
    }
    if is_cpu_build():
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        # One small function of vLLM's sampler is compiled on first use even in eager mode: 15 s.
        environment["TORCHDYNAMO_DISABLE"] = "1"
        if settings.tensor_parallel_size == 1:
            # The model runs in the engine's process instead of a third one.
            environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    return environment


def _dtype(settings: PolicySettings) -> str:
    """`auto` keeps float32 checkpoints in float32 (vLLM's own `auto` would make them bfloat16)."""
    config = settings.checkpoint / "config.json"
    if settings.dtype != "auto" or not config.is_file():
        return settings.dtype
    declared = json.loads(config.read_text())
    is_float32 = (declared.get("dtype") or declared.get("torch_dtype")) == "float32"
    return "float32" if is_float32 else "auto"
