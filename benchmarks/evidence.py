"""`python -m benchmarks.evidence`: is the confidence true, and is the evidence why?

The trained policy (vLLM on CPU), zoom and cca answer phantoms through the clinic's own casework, K
trajectories each: of brain, on which it was trained, and as many of retina and CT, on which it was
not and errs. A calibration is fitted on a part of them and judged on the rest: the figure is its
expected calibration error there, beside that of the raw agreement, and the risk of answering only
the surest. Some problems are asked again with the evidence blanked and with as much area elsewhere
blanked: how often the majority's answer changes. What is random is seeded, but vLLM's sums depend
on what is computed together, so that two runs differ by a few answers.
"""

import argparse
import asyncio
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path

from benchmarks.outcome import Figure, Outcome, make_outcome, print_outcome
from benchmarks.services import FOLDER, TRAINED, benchmark_stack, policy_spec
from services.clinic.calibrate import CalibrationConfig, Judged, fitted, problems_sha256
from services.clinic.calibrator import CalibrationRecord, Calibrator
from services.clinic.casework import features_of
from services.clinic.confidence import Calibration
from services.clinic.fitting import RiskAt, risk_coverage
from services.clinic.provenance import prompt_sha256
from services.clinic.rounds import Neighbours
from services.problems.ingest import ingest_phantoms
from services.problems.phantoms import Phantom, render_phantoms
from shared.api.clinic import Case
from shared.blobs import BlobStore
from shared.clients.cca import CcaClient
from shared.clients.policy import PolicyClient
from shared.clients.zoom import ZoomClient
from shared.geometry import Box
from shared.problem import Problem, ProblemSetManifest
from shared.progress import progress

ECE_AIM = "<= 0.1"
SEED = 7
"""Of no set that is trained on, calibrated on or evaluated."""
MAX_TURN_TOKENS = 512
HELD_OUT = 0.4
COVERAGES = (0.5, 0.7, 0.9)
KINDS = ("brain", "retina", "ct")


class Asked:
    """One problem and the case it ended in."""

    def __init__(self, problem: Problem, lesion: Box, case: Case, *, is_right: bool) -> None:
        self.problem, self.case, self.is_right = problem, case, is_right
        self._lesion = lesion

    def is_of(self, kind: str) -> bool:
        """Whether it is a phantom of this kind."""
        return self.problem.modality == kind

    @property
    def record(self) -> CalibrationRecord:
        """What calibration needs of it."""
        return CalibrationRecord(
            problem_id=self.problem.problem_id,
            image=self.problem.image,
            features=features_of(self.case),
            is_right=self.is_right,
        )

    @property
    def has_seen_the_lesion(self) -> bool:
        """Whether the lesion's centre lies in what was blanked as the evidence."""
        verification = self.case.verification
        asked = None if verification is None else verification.evidence_blanked
        x, y = (self._lesion.x1 + self._lesion.x2) / 2, (self._lesion.y1 + self._lesion.y2) / 2
        return asked is not None and any(
            r.x1 <= x < r.x2 and r.y1 <= y < r.y2 for r in asked.rectangles
        )


def mixed_phantoms(num: int) -> Iterator[Phantom]:
    """So many of each kind as of the others, in turn."""
    kinds = [render_phantoms(kind, SEED, -(-num // len(KINDS))) for kind in KINDS]
    return islice(chain.from_iterable(zip(*kinds, strict=True)), num)


async def ask_all(neighbours: Neighbours, args: argparse.Namespace) -> list[Asked]:
    """Every problem as a case, the first `args.verified` of them verified."""
    phantoms = mixed_phantoms(args.problems)
    problems, lesions = await ingest_phantoms(phantoms, neighbours.zoom, lambda _: None)
    boxes = dict(lesions)
    calibrator = Calibrator(
        neighbours, num_trajectories=args.k, max_turn_tokens=MAX_TURN_TOKENS, seed=SEED
    )
    gate = asyncio.Semaphore(args.concurrency)
    with progress(title="phantoms", unit="case", total=len(problems)) as bar:

        async def ask(index: int, problem: Problem) -> Asked:
            async with gate:
                case = await calibrator.case(problem, verify=index < args.verified)
            is_right = case.answer is not None and await calibrator.is_right(problem, case)
            bar.update(1)
            return Asked(problem, boxes[problem.problem_id], case, is_right=is_right)

        return await asyncio.gather(*(ask(i, p) for i, p in enumerate(problems)))


async def measure(args: argparse.Namespace) -> tuple[Calibration, Judged, list[Asked]]:
    """Start the services, ask, fit."""
    with benchmark_stack("evidence", args.folder) as (stack, lines):
        stack.start(policy_spec(lines, args.model), lines.zoom(), lines.cca())
        neighbours = Neighbours(
            policy=PolicyClient(lines.policy_url),
            zoom=ZoomClient(lines.zoom_url),
            cca=CcaClient(lines.cca_url),
            blobs=BlobStore(str(lines.paths.blobs)),
        )
        try:
            description = await neighbours.policy.describe()
            asked = await ask_all(neighbours, args)
        finally:
            for client in (neighbours.policy, neighbours.zoom, neighbours.cca):
                await client.aclose()
    config = CalibrationConfig(
        problem_set=ProblemSetManifest(
            name="benchmark",
            num_problems=len(asked),
            seed=SEED,
            source=f"phantoms of {', '.join(KINDS)}",
        ),
        problem_set_sha256=problems_sha256([a.problem for a in asked]),
        num_problems=len(asked),
        model=description.model,
        run=description.run,
        version=description.version,
        weights_sha256=description.weights_sha256 or "",
        prompt_sha256=prompt_sha256(),
        num_trajectories=args.k,
        max_turn_tokens=MAX_TURN_TOKENS,
        seed=SEED,
    )
    return *fitted(config, [a.record for a in asked], held_out=HELD_OUT), asked


def share(flags: Sequence[bool]) -> float | None:
    """Of those that are true; None of none."""
    return sum(flags) / len(flags) if flags else None


def flips(asked: Sequence[Asked]) -> dict[str, float | int | None]:
    """How often the majority's answer changed, of answered cases that could be asked both ways."""
    pairs = [
        (v.evidence_blanked.changed, v.elsewhere_blanked.changed)
        for a in asked
        if (v := a.case.verification) is not None
        and v.evidence_blanked is not None
        and v.elsewhere_blanked is not None
    ]
    return {
        "num_cases": len(pairs),
        "evidence_blanked": share([evidence for evidence, _ in pairs]),
        "elsewhere_blanked": share([elsewhere for _, elsewhere in pairs]),
        "only_evidence": share([evidence and not elsewhere for evidence, elsewhere in pairs]),
    }


def at_coverage(curve: Sequence[RiskAt], least: float) -> list[float] | None:
    """The first point of a curve that covers at least so much, as [coverage, risk]."""
    reached = [point for point in curve if point.coverage >= least]
    return [reached[0].coverage, reached[0].risk] if reached else None


def outcome_of(args: argparse.Namespace) -> Outcome:
    """Confidence, then evidence."""
    calibration, judged, asked = asyncio.run(measure(args))
    held = calibration.held_out
    risks = {
        name: risk_coverage(said, judged.is_right, judged.num_problems)
        for name, said in (("agreement", judged.before), ("confidence", judged.after))
    }
    verified = [a for a in asked if a.case.verification is not None]
    every = flips(verified)
    return make_outcome(
        Figure("evidence, ECE of the confidence", held.ece_after, "held out", ECE_AIM),
        also=[
            Figure("evidence, ECE of the raw agreement", held.ece_before, "held out"),
            Figure(
                "evidence, flips without it", every["evidence_blanked"] or 0.0, "of the answers"
            ),
            Figure(
                "evidence, flips without as much elsewhere",
                every["elsewhere_blanked"] or 0.0,
                "of the answers",
            ),
        ],
        detail={
            "date": datetime.now(UTC).date().isoformat(),
            "k": args.k,
            "problems": len(asked),
            "accuracy_of_answered": {
                kind: share([a.is_right for a in asked if a.is_of(kind) and a.case.answer])
                for kind in KINDS
            },
            "answered": share([a.case.answer is not None for a in asked]),
            "held_out": held.model_dump(),
            "weights": dict(
                zip(("agreement", "token_probability", "iou"), calibration.weights, strict=True)
            ),
            "risk_at_coverage": {
                name: {str(c): at_coverage(curve, c) for c in COVERAGES}
                for name, curve in risks.items()
            },
            "flips": {
                "all": every,
                **{kind: flips([a for a in verified if a.is_of(kind)]) for kind in KINDS},
                "right": flips([a for a in verified if a.is_right]),
                "wrong": flips([a for a in verified if not a.is_right]),
                "lesion_in_evidence": flips([a for a in verified if a.has_seen_the_lesion]),
                "lesion_elsewhere": flips([a for a in verified if not a.has_seen_the_lesion]),
            },
        },
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="benchmarks.evidence", description=__doc__)
    parser.add_argument("--problems", type=int, default=240, help="phantoms asked about")
    parser.add_argument("--verified", type=int, default=90, help="of them, asked twice more")
    parser.add_argument("--k", type=int, default=5, help="trajectories per question")
    parser.add_argument("--concurrency", type=int, default=12, help="cases at a time")
    parser.add_argument("--model", type=Path, default=TRAINED, help="checkpoint to serve")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    print_outcome(outcome_of(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
