"""`python -m tests.chaos`: disturbed runs as long and as often as you like.

Every run has a folder of its own under `--out`, with all logs; the exit status is 1 if one of
them does not hold what the audit demands.
"""

import argparse
import dataclasses
import sys
import traceback
from pathlib import Path

from rich.console import Console

from shared.service.logs import configure_logs
from tests.chaos.run import ChaosSettings, disturbed_run


def _parser() -> argparse.ArgumentParser:
    defaults = ChaosSettings()
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(".medvr/chaos"), help="folder of the runs")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of the first run")
    parser.add_argument("--runs", type=int, default=1, help="runs, each with the next seed")
    parser.add_argument(
        "--rounds", type=int, default=defaults.rounds, help="kills of every process in a run"
    )
    parser.add_argument("--max-steps", type=int, default=defaults.max_steps)
    parser.add_argument("--mean-pause-s", type=float, default=defaults.mean_pause_s)
    parser.add_argument("--patience-s", type=float, default=defaults.patience_s)
    return parser


def main() -> int:
    """All runs; how it went."""
    args = _parser().parse_args()
    configure_logs("chaos", "WARNING")
    console = Console(soft_wrap=True)
    num_failed = 0
    for seed in range(args.seed, args.seed + args.runs):
        settings = dataclasses.replace(
            ChaosSettings(),
            seed=seed,
            rounds=args.rounds,
            max_steps=args.max_steps,
            mean_pause_s=args.mean_pause_s,
            patience_s=args.patience_s,
        )
        try:
            disturbed_run(args.out / f"seed-{seed}", settings, console)
        except AssertionError:
            traceback.print_exc()
            num_failed += 1
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
