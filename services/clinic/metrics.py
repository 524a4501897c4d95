"""What the clinic counts: cases by status, seconds per stage, agreement. Never a word of a case."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from shared.api.clinic import Case

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

_OUTCOMES = {True: "supported", False: "unsupported", None: "unverifiable"}


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
        self._confidence = Histogram(
            "medvr_clinic_confidence",
            "Calibrated probability that an answer is right, where it is known.",
            buckets=_SHARES,
            registry=registry,
        )
        self._confidence_unknown = Counter(
            "medvr_clinic_confidence_unknown",
            "Answers without a confidence, by the reason.",
            ["reason"],
            registry=registry,
        )
        self._abstentions = Counter(
            "medvr_clinic_abstentions",
            "Cases that gave no answer, by the reason.",
            ["reason"],
            registry=registry,
        )
        self._verifications = Counter(
            "medvr_clinic_verifications",
            "Answers that were verified: supported, unsupported, or not to be verified.",
            ["outcome"],
            registry=registry,
        )
        self.withheld_shown = Counter(
            "medvr_clinic_withheld_shown",
            "Times a reader asked for what is withheld: of a case, or of its events.",
            ["where"],
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
        self.feedback = Counter(
            "medvr_clinic_feedback",
            "Feedback given, by verdict and role.",
            ["verdict", "role"],
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
            if seconds > 0:  # a stage that was not reached is no observation
                self._stages.labels(name.removesuffix("_s")).observe(seconds)
        if case.agreement is not None:
            self._agreement.observe(case.agreement)
        if case.confidence is not None:
            self._confidence.observe(case.confidence)
        if case.confidence_unknown is not None:
            self._confidence_unknown.labels(case.confidence_unknown.value).inc()
        if case.abstention is not None:
            self._abstentions.labels(case.abstention.value).inc()
        if case.verification is not None:
            self._verifications.labels(_OUTCOMES[case.verification.supported]).inc()
