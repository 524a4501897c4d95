"""`medvr <service> [options]`: starts one process of the system; imports only what it needs."""

import importlib
import sys

SERVICES: dict[str, tuple[str, str]] = {
    "policy": ("services.policy.__main__", "vLLM policy server: tokens, logprobs, exact entropies"),
    "zoom": ("services.zoom.__main__", "images in, crops out"),
    "cca": ("services.cca.__main__", "rewards of a group, consensus at inference"),
    "rollout": ("services.rollout.__main__", "Celery worker: one problem, one scored group"),
    "feeder": ("services.rollout.feeder", "hands problems to the rollout workers"),
    "trainer": ("services.trainer.__main__", "GRPO: consume, step, checkpoint, publish"),
    "clinic": ("services.clinic.__main__", "clinician-facing API and viewer"),
    "problems": ("services.problems.__main__", "render phantoms and scenes into problem sets"),
    "tiny-base": ("services.trainer.tiny.__main__", "supervised pre-training of the tiny policy"),
    "evaluation": ("services.evaluation.__main__", "run the agent over a problem set, score it"),
    "local": ("services.local.__main__", "the whole stack on one machine: up, demo, status"),
}


def usage() -> str:
    """The list of services."""
    lines = ["usage: medvr <service> [options]", "", "services:"]
    lines += [f"  {name:<12}{text}" for name, (_, text) in SERVICES.items()]
    lines += ["", "`medvr <service> --help` lists the options. Research use only."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Dispatch to a service's `main(argv)`."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(usage())
        raise SystemExit(0)
    name, rest = arguments[0], arguments[1:]
    if name not in SERVICES:
        sys.stderr.write(f"error: no service {name!r}\n\n{usage()}")
        raise SystemExit(2)
    importlib.import_module(SERVICES[name][0]).main(rest)


if __name__ == "__main__":
    main()
