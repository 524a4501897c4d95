"""One exception per boundary crossed; over HTTP each is one status and one problem document.

A bad box from the model is an observation, never one of these. `ApiProblem` is what a service
raises for a caller's mistake; the `…Error` classes are what a client raises when the service
behind it did not do what was asked.
"""

from http import HTTPStatus


class MedvrError(Exception):
    """Base of every error this system raises on purpose."""


class ApiProblem(MedvrError):
    """A request that cannot be served; becomes `application/problem+json` (RFC 9457)."""

    def __init__(self, status: HTTPStatus, title: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.title = title
        self.detail = detail


class BoundaryError(MedvrError):
    """Another process did not do what was asked; says which, and whether asking again helps."""

    service: str = "unknown"

    def __init__(self, message: str, *, is_transient: bool, status: int | None = None) -> None:
        super().__init__(f"{self.service}: {message}")
        self.is_transient = is_transient
        self.status = status
        """HTTP status it answered with; None where it gave no answer, or no readable one."""


class PolicyError(BoundaryError):
    """The policy server refused or failed."""

    service = "policy"


class ZoomError(BoundaryError):
    """The zoom service refused or failed."""

    service = "zoom"


class CcaError(BoundaryError):
    """The CCA scorer refused or failed."""

    service = "cca"


class ClinicError(BoundaryError):
    """The clinic API refused or failed."""

    service = "clinic"


class ClinicProblem(ClinicError):
    """The clinic answered with a problem document."""

    def __init__(self, status: int, title: str, detail: str, *, is_transient: bool) -> None:
        super().__init__(f"{status} {title}: {detail}", is_transient=is_transient, status=status)
        self.title = title
        self.detail = detail


class NoGreyLevels(MedvrError):
    """A window was asked for of an image that has no grey levels; the message is fit for the model.

    Like a bad box an observation, and no `ZoomError`.
    """


class BlobError(MedvrError):
    """The blob store has no such blob, or its content is not what its name says."""


class WeightsError(MedvrError):
    """A published policy version is missing, incomplete or not what its manifest says."""


class PayloadError(MedvrError):
    """A queue payload does not validate; it belongs in the dead-letter stream."""
