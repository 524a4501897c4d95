"""`medvr <command> [options]`: starts one process of the system; imports only what it needs."""

import importlib
import sys

COMMANDS: dict[str, tuple[str, str]] = {
    "policy": ("services.policy.__main__", "vLLM policy server: tokens, logprobs, exact entropies"),
    "zoom": ("services.zoom.__main__", "images in, crops out"),
    "cca": ("services.cca.__main__", "rewards of a group, consensus at inference"),
    "rollout": ("services.rollout.__main__", "Celery worker: one problem, one scored group"),
    "feeder": ("services.rollout.feeder_main", "hands problems to the rollout workers"),
    "trainer": ("services.trainer.__main__", "GRPO: consume, step, checkpoint, publish"),
    "clinic": ("services.clinic.__main__", "clinician-facing API and viewer"),
    "clinic-worker": ("services.clinic.worker_main", "Celery worker: the items of clinic jobs"),
    "ask": ("services.clinic.ask", "ask a clinic a question about an image, see its evidence"),
    "problems": ("services.problems.__main__", "render phantoms and scenes into problem sets"),
    "tiny-base": ("services.trainer.tiny.__main__", "supervised pre-training of the tiny policy"),
    "evaluation": ("services.evaluation.__main__", "run the agent over a problem set, score it"),
    "local": ("services.local.__main__", "the whole stack on one machine: up, demo, down"),
    "status": ("services.local.status_main", "the running stack at a glance"),
}
"""Name → its module, which has a `main(argv)`, and what it is."""


def usage() -> str:
    """The list of commands."""
    lines = ["usage: medvr <command> [options]", "", "commands:"]
    lines += [f"  {name:<14}{text}" for name, (_, text) in COMMANDS.items()]
    lines += ["", "`medvr <command> --help` lists the options. Research use only."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Dispatch to a command's `main(argv)`."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(usage())
        raise SystemExit(0)
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        sys.stderr.write(f"error: no command {name!r}\n\n{usage()}")
        raise SystemExit(2)
    importlib.import_module(COMMANDS[name][0]).main(rest)


if __name__ == "__main__":
    main()
