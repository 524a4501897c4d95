"""`medvr tiny-base --scenes FILE --out FOLDER`: pre-train the tiny base policy."""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from shared.service.settings import positive

if TYPE_CHECKING:
    from services.trainer.tiny.scenes import SceneFile

_DEFAULT_STEPS = 480


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="medvr tiny-base",
        description="Supervised pre-training of the tiny base policy on generic scenes.",
    )
    parser.add_argument("--scenes", type=Path, required=True, help="from `medvr problems scenes`")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--steps", type=positive, default=_DEFAULT_STEPS, help="optimizer steps")
    parser.add_argument(
        "--start", type=Path, help="checkpoint to go on from: only what is said is learnt"
    )
    parser.add_argument(
        "--tools",
        nargs="+",
        choices=("zoom_in", "set_window"),
        default=["zoom_in"],
        help="what the policy is told of, and its manifest says",
    )
    parser.add_argument("--seed", type=int, default=0, help="of initialisation and order")
    parser.add_argument("--threads", type=positive, default=2, help="CPU threads")
    return parser.parse_args(argv)


def _revision() -> str:
    """The git revision of the working tree, or `unknown`."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def main(argv: Sequence[str] | None = None) -> None:
    """Read the scenes, train, measure on the probes, write the checkpoint."""
    args = parse(argv)
    from services.trainer.tiny.scenes import read_scene_file
    from shared.checkpoint import check_checkpoint
    from shared.service.process import plain_errors

    with plain_errors():
        if args.start:
            check_checkpoint(args.start)
        _make(args, read_scene_file(args.scenes))


def _make(args: argparse.Namespace, scenes: "SceneFile") -> None:
    revision, started = _revision(), time.monotonic()
    import torch

    from services.trainer.torchvision_ops import declare_missing_operators

    declare_missing_operators()
    from services.trainer.tiny.architecture import build_config, build_model
    from services.trainer.tiny.checkpoint import save_checkpoint, start_from
    from services.trainer.tiny.measure import measure
    from services.trainer.tiny.pretrain import pretrain
    from services.trainer.tiny.recipe import PretrainSettings, further_settings
    from services.trainer.tiny.tokenizer import build_tokenizer
    from services.trainer.tiny.wording import corpus
    from shared.agent.tools import tools_named

    torch.set_num_threads(args.threads)
    tools = tools_named(args.tools)
    tokenizer = build_tokenizer(corpus(scenes.question, scenes.options, tools))
    model = build_model(build_config(tokenizer), args.seed)
    settings = PretrainSettings(num_steps=args.steps, seed=args.seed)
    earlier: dict[str, object] = {}
    if args.start:
        earlier = start_from(model, tokenizer, args.start)
        settings = further_settings(args.steps, args.seed)
    steps = pretrain(model, tokenizer, scenes, settings, tools)
    probed = measure(
        model.eval(),
        tokenizer,
        scenes.question,
        scenes.options,
        scenes.probes,
        tools=tools,
        samples_per_probe=4,
        seed=args.seed,
    )
    last = steps[-20:]
    metrics = {
        "loss_nats": round(sum(m.loss_nats for m in last) / len(last), 4),
        "scene_reading_accuracy": round(sum(m.reading_accuracy for m in last) / len(last), 4),
        **{f"brain_{k}": round(v, 4) for k, v in asdict(probed).items()},
    }
    made_by = {
        "command": f"medvr tiny-base --steps {args.steps} --seed {args.seed}"
        + (f" --tools {' '.join(args.tools)}" if args.tools != ["zoom_in"] else "")
        + (" --start EARLIER" if args.start else ""),
        "scenes": scenes.about,
        "seed": args.seed,
        "revision": revision,
        "seconds": round(time.monotonic() - started),
        "settings": asdict(settings),
        "metrics": metrics,
        **({"started_from": earlier} if earlier else {}),
    }
    save_checkpoint(model, tokenizer, made_by, args.out, tools)
    sys.stdout.write(f"{metrics}\n")


if __name__ == "__main__":
    main()
