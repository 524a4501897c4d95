"""`python -m benchmarks.windowing`: does a policy with two tools need the second one?

The tiny policy trained with `zoom_in` and `set_window` answers CT phantoms whose lesion the file's
own window hides, through real servers: vLLM on CPU, zoom, cca. Four times the same problems, the
same seeds: with both tools; with both, but shown the file's own window whatever it sets (sham: all
is as before but for what the window shows); told of `zoom_in` alone, so that a call of the other is
an unknown tool; and with both, of pictures kept without grey levels, so that the call is answered
by an error. The last two it never met in training, and then mostly gives no answer at all. The
figure is the share of right answers with both; chance is one of six.
"""

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

import msgspec

from benchmarks.outcome import Figure, Outcome, make_outcome, print_outcome
from benchmarks.services import FOLDER, benchmark_stack, policy_spec
from services.evaluation.metrics import Interval, summarise
from services.evaluation.records import EvaluationRecord
from services.evaluation.runner import Agent, run_problems
from services.local.settings import TINY
from services.problems.hounsfield import FILE_WINDOW, in_window
from services.problems.ingest import ingest_phantoms
from services.problems.phantoms import OPTIONS, WINDOWED, Phantom, render_phantoms
from shared.agent.episode import EpisodeSettings
from shared.agent.tools import SET_WINDOW, ZOOM_IN
from shared.api.policy import PolicyDescription
from shared.api.zoom import CropRequest, CropResponse
from shared.clients.cca import CcaClient
from shared.clients.policy import PolicyClient
from shared.clients.zoom import ZoomClient
from shared.geometry import Box
from shared.problem import Problem

_UNIT = "of the answers right"
WINDOWING = TINY / "windowing"
SEED = 1
"""Of `ct-window-test`; no scene that was trained on is of it."""
_CONCURRENCY = 48


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """What the policy did with the problems."""

    accuracy: Interval
    hit_rate: Interval | None
    answered: Interval
    window_share: float
    """Trajectories in which it wrote a call of `set_window`, whatever that was answered."""
    mean_calls: float


def arm_of(records: Sequence[EvaluationRecord], lesions: Mapping[str, Box]) -> Arm:
    """Sums up the records of one arm."""
    metrics = summarise([r.score([lesions[r.problem_id]]) for r in records], seed=0)
    turns = [[] if r.trajectory is None else r.trajectory.turns for r in records]
    named = f'"name": "{SET_WINDOW.name}"'
    return Arm(
        accuracy=metrics.accuracy,
        hit_rate=metrics.hit_rate,
        answered=metrics.answered,
        window_share=mean(any(named in t.generation.text for t in written) for written in turns),
        mean_calls=mean(sum(t.call is not None for t in written) for written in turns),
    )


def without_greys(phantom: Phantom) -> Phantom:
    """The same phantom as a picture in the file's own window, and no more."""
    assert phantom.hounsfield_hw is not None
    shown = in_window(phantom.hounsfield_hw, FILE_WINDOW).convert("RGB")
    return replace(phantom, image=shown, hounsfield_hw=None)


class ShamZoom(ZoomClient):
    """Shows the file's own window, whichever is asked for."""

    async def crop(self, request: CropRequest) -> CropResponse:
        """As `ZoomClient.crop`."""
        return await super().crop(request.model_copy(update={"window": None}))


async def answer(
    problems: Sequence[Problem],
    clients: tuple[PolicyClient, ZoomClient, CcaClient],
    description: PolicyDescription,
    args: argparse.Namespace,
) -> list[EvaluationRecord]:
    """One trajectory a problem, as `medvr evaluation` has them."""
    policy, zoom, cca = clients
    agent = Agent(
        policy=policy,
        zoom=zoom,
        cca=cca,
        description=description,
        episode=EpisodeSettings(
            max_turns=description.max_turns, max_turn_tokens=128, temperature=args.temperature
        ),
        seed=args.seed,
        patience_s=60.0,
    )
    records: list[EvaluationRecord] = []
    await run_problems(agent, problems, concurrency=_CONCURRENCY, on_record=records.append)
    return records


async def measure(args: argparse.Namespace) -> dict[str, Arm]:
    """The four arms, by name."""
    phantoms = list(render_phantoms(WINDOWED, args.phantoms_seed, args.problems))
    with benchmark_stack("windowing", args.folder) as (stack, lines):
        stack.start(policy_spec(lines, args.model), lines.zoom(), lines.cca())
        policy, zoom = PolicyClient(lines.policy_url), ZoomClient(lines.zoom_url)
        clients = (policy, zoom, CcaClient(lines.cca_url), ShamZoom(lines.zoom_url))
        try:
            both = await policy.describe()
            alone = both.model_copy(update={"tools": [ZOOM_IN.name]})
            files, found = await ingest_phantoms(phantoms, zoom, lambda _: None)
            pictures, _ = await ingest_phantoms(map(without_greys, phantoms), zoom, lambda _: None)
            lesions = dict(found)
            arms = {
                "both": (files, both, zoom),
                "sham": (files, both, clients[3]),
                "told_zoom_in": (files, alone, zoom),
                "refused": (pictures, both, zoom),
            }
            return {
                name: arm_of(
                    await answer(problems, (policy, eyes, clients[2]), description, args), lesions
                )
                for name, (problems, description, eyes) in arms.items()
            }
        finally:
            for client in clients:
                await client.aclose()


def outcome_of(arms: Mapping[str, Arm]) -> Outcome:
    """The line."""
    both, chance = arms["both"], 1 / len(OPTIONS)
    also = [
        Figure("windowing, sham", arms["sham"].accuracy.mean, _UNIT),
        Figure("windowing, told of zoom_in alone", arms["told_zoom_in"].accuracy.mean, _UNIT),
        Figure("windowing, refused", arms["refused"].accuracy.mean, _UNIT),
        Figure("windowing, by chance", chance, _UNIT),
        Figure("set_window", both.window_share, "of the trajectories call it"),
    ]
    main = Figure("windowing", both.accuracy.mean, _UNIT, f">= {3 * chance:g}")
    return make_outcome(main, also=also, detail={"arms": msgspec.to_builtins(dict(arms))})


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="benchmarks.windowing", description=__doc__)
    parser.add_argument("--model", type=Path, default=WINDOWING, help="checkpoint")
    parser.add_argument("--problems", type=int, default=200, help="phantoms")
    parser.add_argument("--phantoms-seed", type=int, default=SEED, help="of the phantoms")
    parser.add_argument("--temperature", type=float, default=0.0, choices=(0.0, 1.0))
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="for logs and blobs")
    print_outcome(outcome_of(asyncio.run(measure(parser.parse_args(argv)))))


if __name__ == "__main__":
    main()
