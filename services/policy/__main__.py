"""`python -m services.policy --model <checkpoint>`: settings, checks, then vLLM takes the process.

The process becomes `vllm serve` (exec), so signals and exit codes are vLLM's own.
"""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points

from services.policy.launch import vllm_arguments, vllm_environment
from services.policy.plugin import NAME
from services.policy.settings import PolicySettings
from services.policy.version import require_tested_vllm


def main(argv: Sequence[str] | None = None) -> None:
    """Start the policy server; does not return."""
    settings = PolicySettings.load(argv)
    if not settings.model:
        raise SystemExit("error: --model: the checkpoint to serve (MEDVR_POLICY_MODEL)")
    require_tested_vllm()
    for group in ("vllm.general_plugins", "vllm.endpoint_plugins"):
        if NAME not in {point.name for point in entry_points(group=group)}:
            raise SystemExit(
                f"error: the `{NAME}` plugin is not installed in {group}: reinstall medvr "
                "(`pip install --no-deps -e .`)"
            )
    command = [sys.executable, "-m", "services.policy.serve"]
    os.execvpe(sys.executable, [*command, *vllm_arguments(settings)], vllm_environment(settings))


if __name__ == "__main__":
    main()
