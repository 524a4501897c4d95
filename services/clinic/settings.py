"""Settings of the clinic: where its neighbours are, what it keeps, how much it accepts."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from services.clinic.address import Database, DatabaseAddress
from shared.api.clinic import MAX_TRAJECTORIES
from shared.clients.replicas import ServiceUrls
from shared.errors import MedvrError
from shared.service.settings import RedisUrl, ServiceSettings, settings_config


class ClinicSettings(ServiceSettings):
    """Serve the clinic: a case API and its viewer. Research use only. Not a medical device.

    Other commands of `medvr clinic`, each with its own --help: calibrate, export-feedback,
    reidentify.
    """

    model_config = settings_config("clinic")

    host: str = "127.0.0.1"
    """Address to listen on. There is no login: put it behind a gateway that has one."""
    port: int = Field(default=8080, ge=1, le=65535)
    """Port to listen on."""
    policy_url: ServiceUrls = "http://127.0.0.1:8100"
    """Base URLs of the policy's replicas, separated by commas; `dns+http://name:port` names all."""
    zoom_url: ServiceUrls = "http://127.0.0.1:8120"
    """Base URLs of zoom's replicas."""
    cca_url: ServiceUrls = "http://127.0.0.1:8130"
    """Base URLs of the CCA scorer's replicas."""
    blob_url: str = ".medvr/blobs"
    """Root of the blob store that zoom writes to: a folder or an fsspec URL."""
    database: Database = DatabaseAddress(".medvr/clinic.sqlite")
    """Where cases are kept, of one clinic: an SQLite file, made if absent and readable by its owner
    only, or `postgresql+psycopg://user@host/name`. A password is better given as a variable."""
    pseudonym_database: Database | None = None
    """Whom the pseudonyms of the cases stand for, apart from the cases so that access to it can be:
    as `database`, and never the same one. If not given, a file beside that of the cases, named
    `<its name>-pseudonyms.sqlite`."""
    calibration: Path | None = None
    """Calibration made by `medvr clinic calibrate`; unset means that no answer has a confidence."""
    abstain_below: float = Field(default=0.5, ge=0.0, le=1.0)
    """An answer whose confidence is below this is withheld; 0 withholds none."""
    withhold_unsupported: bool = True
    """Withhold an answer that survives the loss of its evidence (`verify=true`)."""
    revision: str = ""
    """Revision of the code, for provenance; set it where an image is built."""
    default_k: int = Field(default=5, ge=1, le=MAX_TRAJECTORIES)
    """Trajectories per case where the request does not say."""
    max_upload_bytes: int = Field(default=64 * 1024 * 1024, ge=1024)
    """Largest image file accepted, in bytes."""
    redis_url: RedisUrl | None = None
    """Redis whose queue the clinic's workers read, one database per clinic; without it there are
    no jobs."""
    max_job_items: int = Field(default=500, ge=1, le=1000)
    """Most questions, and most images, of one job."""
    max_job_bytes: int = Field(default=1024 * 1024 * 1024, ge=1024)
    """Largest job accepted, all its files together, in bytes."""
    job_sweep_s: float = Field(default=10.0, gt=0)
    """Seconds between two looks for items of jobs that were left undone."""
    max_question_chars: int = Field(default=2000, ge=1)
    """Longest question, in characters."""
    max_choice_chars: int = Field(default=500, ge=1)
    """Longest choice, in characters."""
    max_turn_tokens: int = Field(default=512, ge=1, le=16_384)
    """Tokens the policy may write in one turn."""
    max_concurrent_cases: int = Field(default=4, ge=1)
    """Cases worked on together; further ones wait their turn."""
    patience_s: float = Field(default=120.0, ge=0)
    """How long a case waits for a neighbour that fails for a moment, as when it is restarted."""
    case_timeout_s: float = Field(default=600.0, gt=0)
    """A case that takes longer, waiting not counted, fails."""
    max_wait_s: int = Field(default=60, ge=0)
    """Longest wait that `Prefer: wait` is granted, in seconds."""
    idempotency_key_s: float = Field(default=86_400.0, gt=0)
    """How long an answer is kept for a request that is repeated with its idempotency key."""
    heartbeat_s: float = Field(default=15.0, gt=0)
    """An event stream without events sends a comment after so many seconds."""
    event_stream_s: float = Field(default=900.0, gt=0)
    """An event stream ends after so many seconds; its reader goes on with `Last-Event-ID`."""
    max_event_streams: int = Field(default=64, ge=1)
    """Event streams served together; a further one is refused."""

    @model_validator(mode="after")
    def _pseudonyms_are_kept_apart(self) -> Self:
        if str(self.pseudonym_database) == str(self.database):
            raise ValueError("pseudonym_database must not be the database of the cases")
        return self

    @property
    def pseudonyms(self) -> DatabaseAddress:
        """Where the pseudonyms are kept. Raises `MedvrError` if nothing says it."""
        if self.pseudonym_database is not None:
            return self.pseudonym_database
        path = self.database.path
        if path is None:
            raise MedvrError(
                "pseudonym_database must be given where database is a URL, and be another one"
            )
        return DatabaseAddress(str(path.with_name(f"{path.stem}-pseudonyms.sqlite")))
