"""What the clinic counts: cases by status, seconds per stage, agreement. Never a word of a case."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from shared.api.clinic import Case

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class ClinicMetrics:
    """The clinic's metrics in the registry of its app."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._cases = Counter(
            "medvr_clinic_cases", "Cases that ended, by status.", ["status"], registry=registry
        )
        self._stages = Histogram(
            "medvr_clinic_stage_seconds",
            "Seconds per stage of a case that ended.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._agreement = Histogram(
            "medvr_clinic_agreement",
            "Share of the trajectories that gave the modal answer.",
            buckets=_SHARES,
            registry=registry,
        )
        self.unfinished = Gauge(
            "medvr_clinic_unfinished_cases", "Cases running or waiting.", registry=registry
        )

        self.events = Counter(
            "medvr_clinic_events", "Events told of cases, by name.", ["event"], registry=registry
        )
        self.event_streams = Gauge(
            "medvr_clinic_event_streams", "Event streams being read.", registry=registry
        )
        self.keyed_requests = Counter(
            "medvr_clinic_keyed_requests",
            "Requests with an idempotency key: first, replayed, still running or mismatched.",
            ["outcome"],
            registry=registry,
        )
        self.waits = Counter(
            "medvr_clinic_waits",
            "Requests with `Prefer: wait`, by whether the case ended in time.",
            ["outcome"],
            registry=registry,
        )

        self.jobs = Counter(
            "medvr_clinic_jobs", "Jobs that ended, by status.", ["status"], registry=registry
        )
        self.items_sent_again = Counter(
            "medvr_clinic_items_sent_again",
            "Waiting items whose message was lost.",
            registry=registry,
        )

    def observe(self, case: Case) -> None:
        """Count a case that ended."""
        self._cases.labels(case.status.value).inc()
        for name, seconds in case.timings:
            self._stages.labels(name.removesuffix("_s")).observe(seconds)
        if case.agreement is not None:
            self._agreement.observe(case.agreement)
