"""What the rollout worker and the feeder count; every name starts with `medvr_`."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from shared.trajectory import TrajectoryGroup, Turn

_SECONDS = (0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)
_NATS = (-2, -1, -0.5, -0.25, 0, 0.25, 0.5, 1, 1.5, 2, 3)


class RolloutMetrics:
    """Counters of one worker process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.groups = Counter(
            "medvr_rollout_groups", "Groups by outcome.", ["outcome"], registry=registry
        )
        """appended, duplicate, unwanted, buried, requeued or rejected."""
        self.retries = Counter(
            "medvr_rollout_retries", "Attempts at a group that failed and were repeated.",
            ["service"], registry=registry,
        )  # fmt: skip
        self.running = Gauge(
            "medvr_rollout_running_groups", "Groups being rolled out.", registry=registry
        )
        self.seconds = Histogram(
            "medvr_rollout_group_seconds", "Time to roll out and score a group.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.trajectories = Counter(
            "medvr_rollout_trajectories", "Trajectories by origin.", ["origin"], registry=registry
        )
        self.displaced = Counter(
            "medvr_rollout_displaced_branches",
            "Branches given up for others whose calls became known later.",
            registry=registry,
        )
        self.turns = Counter("medvr_rollout_turns", "Turns sampled.", registry=registry)
        self.tokens = Counter("medvr_rollout_tokens", "Tokens sampled.", registry=registry)
        self.entropy_increase = Histogram(
            "medvr_rollout_entropy_increase_nats", "ΔH_tool at the calls EVR looked at.",
            buckets=_NATS, registry=registry,
        )  # fmt: skip

    def count_group(self, group: TrajectoryGroup) -> None:
        """Count a finished group; what a branch inherited is not counted again."""
        self.seconds.observe(group.rollout_seconds)
        for trajectory in group.trajectories:
            self.trajectories.labels(trajectory.origin.value).inc()
            own = trajectory.turns[trajectory.forked_at_turn or 0 :]
            self.turns.inc(len(own))
            tokens = sum(len(turn.generation.token_ids) for turn in own)
            self.tokens.inc(tokens - (trajectory.forked_at_token or 0))
            self._observe_entropies(own)

    def _observe_entropies(self, turns: list[Turn]) -> None:
        for turn in turns:
            if turn.call is not None and turn.call.fork is not None:
                self.entropy_increase.observe(turn.call.fork.entropy_increase_nats)


class FeederMetrics:
    """Gauges and counters of the feeder."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.fed = Counter("medvr_feeder_fed", "Groups handed out.", registry=registry)
        self.refed = Counter(
            "medvr_feeder_refed", "Groups handed out again after Redis lost them.",
            registry=registry,
        )  # fmt: skip
        self.outstanding = Gauge(
            "medvr_feeder_outstanding", "Fed groups without a fate.", registry=registry
        )
        self.queue_depth = Gauge(
            "medvr_feeder_queue_depth", "Groups waiting for a worker.", registry=registry
        )
        self.round = Gauge(
            "medvr_feeder_round", "Pass over the problem set of the next group.", registry=registry
        )
