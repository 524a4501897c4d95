"""`python -m services.policy --model <checkpoint>`: settings, checks, then vLLM takes the process.

The process becomes `vllm serve` (exec), so signals and exit codes are vLLM's own. What can be seen
to be wrong is said before: vLLM takes half a minute to say it, in a page of traceback.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

from services.policy.settings import PolicySettings


def main(argv: Sequence[str] | None = None) -> None:
    """Start the policy server; does not return."""
    settings = PolicySettings.load(argv)

    from services.policy.launch import remove_leftovers, vllm_arguments, vllm_environment
    from services.policy.version import require_tested_vllm
    from shared.service.process import plain_errors

    with plain_errors():
        require_tested_vllm()
        check(settings)
    remove_leftovers(settings)
    command = [sys.executable, "-m", "services.policy.serve"]
    os.execvpe(sys.executable, [*command, *vllm_arguments(settings)], vllm_environment(settings))


def check(settings: PolicySettings) -> None:
    """The installation, the checkpoint and the port. Raises `MedvrError`."""
    from importlib.metadata import entry_points

    from services.policy.plugin import NAME
    from services.policy.version import is_cpu_build
    from shared.blobs import BlobStore
    from shared.checkpoint import check_checkpoint, is_hub_name
    from shared.errors import MedvrError
    from shared.service.serve import listen

    for group in ("vllm.general_plugins", "vllm.endpoint_plugins"):
        if NAME not in {point.name for point in entry_points(group=group)}:
            raise MedvrError(
                f"the `{NAME}` plugin is not installed in {group}: reinstall medvr "
                "(`pip install --no-deps -e .`)"
            )
    if settings.weight_transfer == "nccl" and is_cpu_build():
        raise MedvrError("weight_transfer nccl needs CUDA; vLLM's CPU build is installed")
    if not is_hub_name(settings.model):
        check_context(settings, check_checkpoint(settings.checkpoint))
    BlobStore(settings.blob_url)
    listen(settings.host, settings.port).close()


def check_context(settings: PolicySettings, config: dict[str, Any]) -> None:
    """Raise `WeightsError` for a context longer than the model has positions for."""
    from shared.errors import WeightsError

    text: dict[str, Any] = config.get("text_config") or config
    longest = text.get("max_position_embeddings")
    wanted = settings.max_model_len
    if wanted is not None and longest is not None and wanted > longest:
        raise WeightsError(
            f"max_model_len {wanted} is more than the {longest} positions of {settings.model}"
        )


if __name__ == "__main__":
    main()
