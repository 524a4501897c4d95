# pyright: basic
"""The entropy kernel beside vLLM's own sampler, on logits as a full-size policy makes them.

All run in this process on one thread: `entropy_nats`, the whole of what the policy's plugin does in
a step (entropy, log-probability and choice of every row's token, reproducible from a seed), and
vLLM's sampler as an ordinary request at temperature 1 uses it (no seed, the log-probability of the
sampled token).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # as the policy server on CPU does

import torch

from benchmarks.pairs import Pairs, measure_calls
from services.policy.entropy import Choice, Chooser, EntropyTable, Record, entropy_nats
from services.policy.torchvision_ops import declare_torchvision_operators

declare_torchvision_operators()

from vllm.v1.sample.logits_processor import LogitsProcessors  # noqa: E402
from vllm.v1.sample.metadata import SamplingMetadata  # noqa: E402
from vllm.v1.sample.sampler import Sampler  # noqa: E402


def draw_logits(rows: int, vocabulary: int, seed: int = 0) -> torch.Tensor:
    """Peaked logits with a few forbidden tokens, float32."""
    generator = torch.Generator().manual_seed(seed)
    logits_rv = 2.5 * torch.randn(rows, vocabulary, generator=generator)
    logits_rv[:, :8] += 12.0
    logits_rv[:, -5:] = -torch.inf
    return logits_rv


def sampler_of(rows: int) -> Callable[[torch.Tensor], object]:
    """One step of vLLM's sampler for so many requests."""
    nothing = torch.empty(0)
    metadata = SamplingMetadata(
        temperature=torch.ones(rows),
        all_greedy=False,
        all_random=True,
        top_p=None,
        top_k=None,
        generators={},
        max_num_logprobs=0,
        no_penalties=True,
        prompt_token_ids=None,
        frequency_penalties=nothing,
        presence_penalties=nothing,
        repetition_penalties=nothing,
        output_token_ids=[[] for _ in range(rows)],
        allowed_token_ids_mask=None,
        bad_words_token_ids={},
        logitsprocs=LogitsProcessors(),
    )
    sampler = Sampler(logprobs_mode="processed_logprobs")
    return lambda logits_rv: sampler(logits_rv, metadata)


def entropies(logits_rv: torch.Tensor) -> torch.Tensor:
    """H_t of each row, from logits."""
    return entropy_nats(torch.softmax(logits_rv, dim=-1))


def reference_nats(logits_rv: torch.Tensor) -> torch.Tensor:
    """H_t in float64, straight from its definition."""
    probabilities_rv = torch.softmax(logits_rv.double(), dim=-1)
    return torch.special.entr(probabilities_rv).sum(dim=-1)


@dataclass(frozen=True)
class Kernel:
    """What was measured; seconds."""

    entropy: Pairs
    """The entropy alone, and the sampler."""
    step: Pairs
    """All that the plugin does, and the sampler."""
    largest_error_nats: float


def measure_kernel(rows: int, vocabulary: int, repeats: int) -> Kernel:
    """The plugin's work beside the sampler's, on the same logits."""
    torch.set_num_threads(1)
    logits_rv = draw_logits(rows, vocabulary)
    error = float((entropies(logits_rv).double() - reference_nats(logits_rv)).abs().max())
    sample = sampler_of(rows)
    chooser = Chooser(EntropyTable())
    records = {row: Record(str(row), [], Choice(seed=row)) for row in range(rows)}
    scratch_rv = logits_rv.clone()

    def against(call: Callable[[torch.Tensor], object], title: str) -> Pairs:
        def restored() -> torch.Tensor:
            return scratch_rv.copy_(logits_rv)  # both may write into the logits

        def timed(one: Callable[[torch.Tensor], object]) -> Callable[[], object]:
            return lambda: one(restored())

        label = f"{title}, {rows} x {vocabulary}"
        return measure_calls(timed(call), timed(sample), repeats=repeats, title=label)

    with torch.inference_mode():
        sample(scratch_rv)
        return Kernel(
            entropy=against(entropies, "entropy"),
            step=against(lambda logits: chooser.choose(logits, records), "entropy and choice"),
            largest_error_nats=error,
        )
