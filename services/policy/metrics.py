"""Metrics of the policy server, in the same exposition as vLLM's own."""

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram


class PolicyMetrics:
    """Prometheus metrics; one instance per registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.sampled_tokens = Counter(
            "medvr_policy_sampled_tokens", "Tokens answered with entropies.", registry=registry
        )
        self.scored_tokens = Counter(
            "medvr_policy_scored_tokens", "Tokens of scored continuations.", registry=registry
        )
        self.swap_seconds = Histogram(
            "medvr_policy_swap_seconds",
            "Time from the pause to the resume of a weight swap.",
            buckets=(0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120),
            registry=registry,
        )
        self.swaps = Counter(
            "medvr_policy_swaps",
            "Weight swaps by outcome: swapped, refused (verification), restored (load failed).",
            ["outcome"],
            registry=registry,
        )
        self.transfers = Counter(
            "medvr_policy_transfers",
            "Versions that a trainer sent here: received, failed (the folder was loaded instead).",
            ["outcome"],
            registry=registry,
        )
        self.channel_errors = Counter(
            "medvr_policy_channel_errors",
            "Looks at the weights channel that failed.",
            registry=registry,
        )
        self.weights_version = Gauge(
            "medvr_policy_weights_version", "Policy version being served.", registry=registry
        )
