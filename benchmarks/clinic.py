"""`python -m benchmarks.clinic`: what the clinic adds to the policy's own time.

Real clinic, zoom, cca and policy (vLLM with the trained tiny policy) as processes on loopback. A
case is asked with an image nobody has seen and K trajectories, and waited for. The *overhead* of
a case is the wall time at the client, from sending the image to the last byte of the finished
case, less the time in which at least one turn was being sampled for it, as a wire in front of the
policy saw it (`policy_wire`): upload, ingest, the view, crops that no turn hides, the database,
consensus, heatmap, the answer, and the wire's own copying.

In turns with it, in the same run, the bare agent loop does the same without a clinic: the same
clients, K and seeds, the same calls of zoom, policy and cca, no database, no events, no HTTP of
its own. Its overhead by the same measure says what the others cost, and the difference what the
clinic does.

Then so many cases at a time: throughput, latencies, and errors, of which there must be none.
"""

import argparse
import asyncio
import dataclasses
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.cpu import cpu_seconds, machine_busy_seconds, own_cpu_seconds
from benchmarks.outcome import Figure, Outcome, make_outcome, print_outcome
from benchmarks.pairs import Spread, measure_pairs
from benchmarks.policy_wire import PolicyWire, covered_s, policy_wire
from benchmarks.problems import SEED
from benchmarks.services import FOLDER, TRAINED, benchmark_stack, policy_spec
from services.clinic.reasoning import wire_box
from services.clinic.rounds import trajectory_seed
from services.local.processes import CommandLines
from services.local.spec import ProcessSpec
from services.local.stack import Stack
from services.problems.phantoms import OPTIONS, QUESTION, render_phantom
from shared.agent.environment import open_problem
from shared.agent.episode import EpisodeSettings, run_episode
from shared.api.cca import ConsensusAttempt, ConsensusRequest
from shared.api.clinic import Case, CaseStatus
from shared.api.zoom import WireImageSize
from shared.clients.cca import CcaClient
from shared.clients.http import open_client
from shared.clients.policy import PolicyClient
from shared.clients.zoom import ZoomClient
from shared.problem import AnswerKind
from shared.progress import progress
from shared.render import encode_png

AIM = "<= 15"
MAX_TURN_TOKENS = 512
_TIMEOUT = httpx.Timeout(600.0)


@dataclass(frozen=True)
class WiredLines(CommandLines):
    """Command lines whose callers reach the policy by a wire."""

    wire_port: int = 0

    @property
    def policy_url(self) -> str:
        """The wire's near end."""
        return f"http://127.0.0.1:{self.wire_port}"


@dataclass
class Overheads:
    """What cases of one kind took."""

    wall_s: list[float] = field(default_factory=list[float])
    policy_s: list[float] = field(default_factory=list[float])
    turns: list[int] = field(default_factory=list[int])

    @property
    def overhead_ms(self) -> list[float]:
        """Of each case."""
        return [1e3 * (a - b) for a, b in zip(self.wall_s, self.policy_s, strict=True)]

    def described(self) -> dict[str, Any]:
        """For the detail."""
        p50, p95 = np.quantile(self.overhead_ms, [0.5, 0.95]).tolist()
        return {
            "overhead_p50_ms": p50,
            "overhead_p95_ms": p95,
            "wall_ms": [1e3 * s for s in Spread.of(self.wall_s).as_list()],
            "policy_ms": [1e3 * s for s in Spread.of(self.policy_s).as_list()],
            "turns_per_case": sum(self.turns) / len(self.turns),
        }


class Measurement:
    """Cases on running services, each with an image of its own."""

    def __init__(self, lines: WiredLines, wire: PolicyWire, k: int) -> None:
        self._http = open_client(_TIMEOUT, has_tls=False)
        self._url = lines.clinic_url
        self._policy = PolicyClient(lines.policy_url, self._http)
        self._zoom = ZoomClient(lines.zoom_url, self._http)
        self._cca = CcaClient(lines.cca_url, self._http)
        self._wire = wire
        self._k = k
        self._images = self._drawn()
        self.by_clinic, self.bare = Overheads(), Overheads()
        self.stages: list[dict[str, float]] = []

    @staticmethod
    def _drawn() -> Iterator[bytes]:
        index = 0
        while True:
            yield encode_png(render_phantom("brain", SEED, index).image)
            index += 1

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _ask(self, http: httpx.AsyncClient, image: bytes, seed: int) -> Case:
        """A case that has ended. Raises `httpx.HTTPError` or `ValueError` if it is none."""
        form = {"question": QUESTION, "choices": list(OPTIONS), "k": str(self._k)}
        answer = await http.post(
            f"{self._url}/v1/cases",
            data=form | {"seed": str(seed)},
            files={"image": ("scan.png", image, "image/png")},
        )
        answer.raise_for_status()
        case = Case.model_validate_json(answer.content)
        if case.status not in (CaseStatus.ANSWERED, CaseStatus.ABSTAINED):
            raise ValueError(f"the case is {case.status.value}: {case.failure}")
        return case

    async def case_by_clinic(self, repeat: int) -> float:
        """Overhead of a case in seconds."""
        image = next(self._images)
        self._wire.taken()
        started = time.perf_counter()
        case = await self._ask(self._http, image, repeat)
        wall_s = time.perf_counter() - started
        self.stages.append(case.timings.model_dump())
        return self._counted(self.by_clinic, wall_s)

    async def case_bare(self, repeat: int) -> float:
        """The same without a clinic."""
        image = next(self._images)
        self._wire.taken()
        started = time.perf_counter()
        await self._loop(image, repeat)
        return self._counted(self.bare, time.perf_counter() - started)

    def _counted(self, overheads: Overheads, wall_s: float) -> float:
        turns = self._wire.taken()
        overheads.wall_s.append(wall_s)
        overheads.policy_s.append(covered_s(turns))
        overheads.turns.append(len(turns))
        return wall_s - covered_s(turns)

    async def _loop(self, image: bytes, seed: int) -> None:
        """What METHOD.md asks for at inference, and nothing else."""
        stored = await self._zoom.ingest(image, "image/png")
        description = await self._policy.describe()
        opened = await open_problem(
            self._zoom, description, image=stored.image, question=QUESTION, options=OPTIONS
        )
        settings = EpisodeSettings(
            max_turns=description.max_turns, max_turn_tokens=MAX_TURN_TOKENS, temperature=1.0
        )
        trajectories = await asyncio.gather(
            *(
                run_episode(
                    self._policy,
                    self._zoom,
                    opened,
                    trajectory_id=str(index),
                    seed=trajectory_seed(seed, index),
                    settings=settings,
                )
                for index in range(self._k)
            )
        )
        attempts = [
            ConsensusAttempt(
                trajectory_id=trajectory.trajectory_id,
                answer=trajectory.answer,
                boxes=[wire_box(box) for box in trajectory.boxes],
            )
            for trajectory in trajectories
        ]
        size = WireImageSize(width_px=stored.width_px, height_px=stored.height_px)
        await self._cca.consensus(
            ConsensusRequest(
                answer_kind=AnswerKind.CHOICE,
                options=list(OPTIONS),
                image_size=size,
                attempts=attempts,
                heatmap=True,
            )
        )

    async def under_load(self, num_cases: int, num_callers: int) -> "Load":
        """So many cases, so many at a time, each caller on a connection of its own."""
        images = [next(self._images) for _ in range(num_cases)]
        waiting = iter(
            progress(list(enumerate(images)), title=f"{num_callers} callers", unit="case")
        )
        load = Load()

        async def caller(http: httpx.AsyncClient) -> None:
            for seed, image in waiting:
                started = time.perf_counter()
                try:
                    await self._ask(http, image, seed)
                except (httpx.HTTPError, ValueError) as error:
                    load.errors[f"{type(error).__name__}: {error}"] += 1
                load.latencies_s.append(time.perf_counter() - started)

        async with open_client(_TIMEOUT, has_tls=False) as http:
            started = time.perf_counter()
            await asyncio.gather(*(caller(http) for _ in range(num_callers)))
            load.seconds = time.perf_counter() - started
        return load


@dataclass
class Load:
    """What many cases at a time were like."""

    latencies_s: list[float] = field(default_factory=list[float])
    errors: Counter[str] = field(default_factory=Counter[str])
    seconds: float = 0.0


def clinic_spec(lines: CommandLines, num_cases: int) -> ProcessSpec:
    """A clinic that works on so many cases together."""
    spec = lines.clinic()
    return dataclasses.replace(
        spec, command=(*spec.command, "--max-concurrent-cases", str(num_cases))
    )


def load_of(stack: Stack) -> dict[str, float]:
    """Processor seconds so far, by service; of others on the machine; and by the clock."""
    used = {child.name: cpu_seconds(child.pid) for child in stack.supervisor.children()}
    own_s = sum(used.values()) + own_cpu_seconds(os.getpid())
    return used | {"others": machine_busy_seconds() - own_s, "clock": time.perf_counter()}


async def measure(
    stack: Stack, lines: WiredLines, wire: PolicyWire, args: argparse.Namespace
) -> Outcome:
    """One at a time in turns with the bare loop, then many at a time."""
    measurement = Measurement(lines, wire, args.k)
    try:
        await measure_pairs(
            measurement.case_by_clinic, measurement.case_bare, repeats=2, title="warm-up"
        )
        measurement.by_clinic, measurement.bare = Overheads(), Overheads()
        measurement.stages.clear()
        idle = load_of(stack)
        pairs = await measure_pairs(
            measurement.case_by_clinic,
            measurement.case_bare,
            repeats=args.repeats,
            title="one case at a time",
        )
        busy = load_of(stack)
        load = await measurement.under_load(args.cases, args.callers)
    finally:
        await measurement.aclose()
    overhead_ms = measurement.by_clinic.overhead_ms
    p50, p95 = np.quantile(overhead_ms, [0.5, 0.95]).tolist()
    added = Spread.of([1e3 * (a - b) for a, b in zip(pairs.first, pairs.second, strict=True)])
    load_p50, load_p95 = np.quantile(load.latencies_s, [0.5, 0.95]).tolist()
    callers = f"{args.callers} cases at a time"
    return make_outcome(
        Figure("clinic, overhead p50", p50, "ms above the policy's own time", AIM),
        also=[
            Figure("clinic, overhead p95", p95, "ms above the policy's own time"),
            Figure("clinic, over the bare agent loop", added.median, "ms more overhead"),
            Figure(f"clinic, {callers}", args.cases / load.seconds, "cases per second"),
            Figure(f"clinic, {callers}, p95", load_p95, "s"),
            Figure(f"clinic, {callers}, errors", load.errors.total(), "cases", "<= 0"),
        ],
        detail={
            "k": args.k,
            "repeats": args.repeats,
            "clinic": measurement.by_clinic.described(),
            "bare": measurement.bare.described(),
            "added_ms": added.as_list(),
            "cpu_ms_per_pair": {
                name: 1e3 * (busy[name] - idle[name]) / args.repeats
                for name in ("clinic", "zoom", "cca", "policy")
            },
            "processors_used_by_others": (busy["others"] - idle["others"])
            / (busy["clock"] - idle["clock"]),
            "clinic_stages_ms": {
                name: 1e3 * float(np.median([stages[name] for stages in measurement.stages]))
                for name in measurement.stages[0]
            },
            "load": {
                "cases": args.cases,
                "callers": args.callers,
                "p50_s": load_p50,
                "p95_s": load_p95,
                "errors": dict(load.errors),
                "seconds": load.seconds,
            },
        },
    )


def run(args: argparse.Namespace) -> Outcome:
    """Start the services, measure, stop them."""
    with benchmark_stack("clinic", args.folder) as (stack, lines):
        # An earlier run left the same images there, and storing them again would be free.
        shutil.rmtree(lines.paths.blobs, ignore_errors=True)
        for file in lines.paths.root.glob(f"{lines.paths.database.name}*"):
            file.unlink()
        policy = policy_spec(lines, args.model)
        stack.launch(policy, lines.cca())
        stack.start(lines.zoom())
        stack.wait_for(policy)
        with policy_wire(lines.ports.policy) as wire:
            wired = WiredLines(lines.paths, lines.ports, wire.port)
            stack.start(clinic_spec(wired, args.callers))
            return asyncio.run(measure(stack, wired, wire, args))


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="benchmarks.clinic", description=__doc__)
    parser.add_argument("--repeats", type=int, default=40, help="cases in turns with the bare loop")
    parser.add_argument("--cases", type=int, default=128, help="cases under load")
    parser.add_argument("--callers", type=int, default=64, help="cases at a time")
    parser.add_argument("--k", type=int, default=5, help="trajectories per case")
    parser.add_argument("--model", type=Path, default=TRAINED, help="checkpoint of the policy")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    print_outcome(run(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
