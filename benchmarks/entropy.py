"""`python -m benchmarks.entropy`: what exact entropies cost the policy server.

Two real servers (vLLM on CPU, the same checkpoint) get the same requests in turns: one measures
and chooses every token itself, the other leaves both to vLLM's sampler and reports no entropies.
They draw other tokens, so throughput is counted in tokens. The figure is the ratio of throughputs,
the median over the turns; beside it the ratio of tokens per second of processor time, which other
users of the machine do not disturb. First the kernel alone, beside vLLM's sampler, on logits of the
real vocabulary's size.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.cpu import cpu_seconds
from benchmarks.outcome import Figure, Outcome, make_outcome, print_outcome
from benchmarks.pairs import Pairs, Spread, measure_pairs
from benchmarks.problems import ingest_problems
from benchmarks.services import CHECKPOINT, FOLDER, benchmark_stack, plain_policy, policy_spec
from services.rollout.group import trajectory_seed
from shared.agent.environment import open_problem
from shared.agent.episode import turn_seed
from shared.agent.opened import OpenedProblem
from shared.api.policy import GenerateRequest
from shared.clients.policy import PolicyClient
from shared.clients.zoom import ZoomClient

AIM = ">= 0.95"
MAX_TOKENS = 64
KERNEL_ROWS = 64
KERNEL_VOCABULARY = 152_064


@dataclass
class Server:
    """One of the two, and what it has used so far."""

    client: PolicyClient
    pid: int
    cpu_s: list[float] = field(default_factory=list[float])
    """Of each turn."""
    num_tokens: list[int] = field(default_factory=list[int])
    """Sampled in each turn."""

    @property
    def tokens_per_cpu_s(self) -> list[float]:
        """Of each turn."""
        return [num / s for num, s in zip(self.num_tokens, self.cpu_s, strict=True)]


async def ask(
    server: Server, opened: Sequence[OpenedProblem], num_requests: int, round_index: int
) -> float:
    """All requests at once; tokens per second."""

    async def one(index: int) -> int:
        seed = turn_seed(trajectory_seed(f"benchmark-{round_index}"), index)
        response = await server.client.generate(
            GenerateRequest(
                segments=opened[index % len(opened)].prompt_segments,
                max_tokens=MAX_TOKENS,
                seed=seed,
            )
        )
        return len(response.token_ids)

    before_s, started = cpu_seconds(server.pid), time.perf_counter()
    num_tokens = sum(await asyncio.gather(*map(one, range(num_requests))))
    seconds = time.perf_counter() - started
    server.cpu_s.append(cpu_seconds(server.pid) - before_s)
    server.num_tokens.append(num_tokens)
    return num_tokens / seconds


async def measure_servers(
    exact: Server, plain: Server, zoom: ZoomClient, args: argparse.Namespace
) -> Pairs:
    """Tokens per second of both, in turns; the first turn of each only warms it up."""
    problems = await ingest_problems(zoom, args.problems)
    description = await exact.client.describe()
    opened = [
        await open_problem(zoom, description, image=p.image, question=p.question, options=p.options)
        for p in problems
    ]
    for server in (exact, plain):
        await ask(server, opened, args.requests, -1)
        server.cpu_s.clear()
        server.num_tokens.clear()
    return await measure_pairs(
        lambda r: ask(exact, opened, args.requests, r),
        lambda r: ask(plain, opened, args.requests, r),
        repeats=args.repeats,
        title="servers in turns",
    )


async def compare_servers(args: argparse.Namespace) -> tuple[Pairs, Server, Server]:
    """Start both servers and zoom, measure, stop them."""
    with benchmark_stack("entropy", args.folder) as (stack, lines):
        exact_spec = policy_spec(lines, args.model)
        plain_spec, plain_url = plain_policy(lines, args.model)
        stack.start(exact_spec, plain_spec, lines.zoom())
        exact, plain = (
            Server(PolicyClient(url), stack.supervisor.child(spec.name).pid)
            for url, spec in ((lines.policy_url, exact_spec), (plain_url, plain_spec))
        )
        zoom = ZoomClient(lines.zoom_url)
        try:
            return await measure_servers(exact, plain, zoom, args), exact, plain
        finally:
            for client in (exact.client, plain.client, zoom):
                await client.aclose()


def outcome_of(args: argparse.Namespace) -> Outcome:
    """Kernel and servers."""
    from benchmarks.entropy_kernel import measure_kernel

    kernel = measure_kernel(args.kernel_rows, args.kernel_vocabulary, args.repeats)
    pairs, exact, plain = asyncio.run(compare_servers(args))
    cpu = Pairs(exact.tokens_per_cpu_s, plain.tokens_per_cpu_s)
    entropy_s, sampler_s = kernel.entropy.times()
    return make_outcome(
        Figure("entropy", pairs.ratio().median, "x throughput without", AIM),
        also=[
            Figure("entropy by processor time", cpu.ratio().median, "x throughput without", AIM),
            Figure("entropy kernel", kernel.entropy.ratio().median, "x time of vLLM's sampler"),
            Figure("entropy and choice", kernel.step.ratio().median, "x time of vLLM's sampler"),
        ],
        detail={
            "ratio": pairs.ratio().as_list(),
            "ratio_by_processor_time": cpu.ratio().as_list(),
            "tokens_per_s": [Spread.of(pairs.first).as_list(), Spread.of(pairs.second).as_list()],
            "num_tokens": [sum(exact.num_tokens), sum(plain.num_tokens)],
            "concurrent_requests": args.requests,
            "repeats": args.repeats,
            "kernel": {
                "rows": args.kernel_rows,
                "vocabulary": args.kernel_vocabulary,
                "entropy_ms": [1e3 * s for s in entropy_s.as_list()],
                "entropy_and_choice_ms": [1e3 * s for s in kernel.step.times()[0].as_list()],
                "sampler_ms": [1e3 * s for s in sampler_s.as_list()],
                "largest_error_nats": kernel.largest_error_nats,
            },
        },
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="benchmarks.entropy", description=__doc__)
    parser.add_argument("--repeats", type=int, default=16, help="turns of each server")
    parser.add_argument("--requests", type=int, default=64, help="requests at a time")
    parser.add_argument("--problems", type=int, default=8, help="phantoms asked about")
    parser.add_argument("--kernel-rows", type=int, default=KERNEL_ROWS)
    parser.add_argument("--kernel-vocabulary", type=int, default=KERNEL_VOCABULARY)
    parser.add_argument("--model", type=Path, default=CHECKPOINT, help="checkpoint to serve")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    print_outcome(outcome_of(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
