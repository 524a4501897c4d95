"""`medvr problems phantoms|scenes|contact-sheet`: renders problem sets and pre-training scenes."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from shared.service.settings import positive

PHANTOM_SETS: dict[str, tuple[str, int]] = {
    "brain-train": ("brain", 0),
    "brain-test": ("brain", 1),
    "brain-calibration": ("brain", 3),
    "retina-test": ("retina", 1),
    "ct-test": ("ct", 1),
    "ct-window-test": ("ct-window", 1),
}
"""Modality and seed of each phantom set; training, test and calibration share no seed."""

PROBE_SEED = 2
"""Of the brain phantoms a base is measured on: in neither training nor test."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="medvr problems", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    phantoms = commands.add_parser("phantoms", help="render phantom sets into problem sets")
    phantoms.add_argument("--out", type=Path, required=True, help="folder of the problem sets")
    phantoms.add_argument("--zoom", default="http://127.0.0.1:8120", help="URL of the zoom service")
    phantoms.add_argument("--sets", nargs="+", choices=PHANTOM_SETS, default=list(PHANTOM_SETS))
    phantoms.add_argument("--train", type=positive, default=2000, help="phantoms in a training set")
    phantoms.add_argument("--test", type=positive, default=200, help="phantoms in a test set")

    scenes = commands.add_parser("scenes", help="render the scenes that pre-train the tiny policy")
    scenes.add_argument("--out", type=Path, required=True, help="parquet file")
    scenes.add_argument("--scenes", type=positive, default=6000, help="scenes to render")
    scenes.add_argument("--probes", type=positive, default=150, help="brain phantoms to measure on")
    scenes.add_argument(
        "--found-share", type=float, default=0.35, help="share of imitated looks near the target"
    )
    scenes.add_argument(
        "--hidden-share", type=float, default=0.0, help="share of scenes to set a window in first"
    )
    scenes.add_argument("--seed", type=int, default=0)
    scenes.add_argument("--processes", type=positive, default=2)

    sheet = commands.add_parser("contact-sheet", help="render a PNG of phantoms to look at")
    sheet.add_argument("--out", type=Path, required=True, help="PNG file")
    sheet.add_argument(
        "--modality", choices=("brain", "retina", "ct", "ct-window"), default="brain"
    )
    sheet.add_argument("--number", type=positive, default=12)
    sheet.add_argument("--seed", type=int, default=1)
    return parser


def _phantoms(args: argparse.Namespace) -> None:
    import asyncio

    from services.problems.ingest import write_phantom_set
    from services.problems.phantoms import render_phantoms
    from shared.clients.zoom import ZoomClient

    async def write_all() -> None:
        zoom = ZoomClient(args.zoom)
        try:
            for name in args.sets:
                modality, seed = PHANTOM_SETS[name]
                number = args.train if name.endswith("-train") else args.test
                written = await write_phantom_set(
                    args.out / name,
                    render_phantoms(modality, seed, number),
                    zoom,
                    num_phantoms=number,
                    seed=seed,
                    source=f"phantoms of {modality}, {number} from seed {seed}",
                )
                sys.stdout.write(f"{args.out / name}: {written} problems\n")
        finally:
            await zoom.aclose()

    asyncio.run(write_all())


def _scenes(args: argparse.Namespace) -> None:
    from services.problems.scene_file import write_scene_file

    write_scene_file(
        args.out,
        seed=args.seed,
        num_scenes=args.scenes,
        num_probes=args.probes,
        probe_seed=PROBE_SEED,
        found_share=args.found_share,
        hidden_share=args.hidden_share,
        num_processes=args.processes,
    )
    sys.stdout.write(f"{args.out}: {args.scenes} scenes, {args.probes} probes\n")


def _contact_sheet(args: argparse.Namespace) -> None:
    from services.problems.contact_sheet import contact_sheet
    from services.problems.phantoms import render_phantoms

    args.out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(render_phantoms(args.modality, args.seed, args.number)).save(
        args.out, format="PNG"
    )
    sys.stdout.write(f"{args.out}\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse and run one command."""
    args = build_parser().parse_args(argv)
    commands = {"phantoms": _phantoms, "scenes": _scenes, "contact-sheet": _contact_sheet}
    from shared.service.process import plain_errors

    with plain_errors():
        commands[args.command](args)


if __name__ == "__main__":
    main()
