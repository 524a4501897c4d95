"""Who hides behind the pseudonyms of the cases: a database of its own, and nothing else in it.

Invariant: a pseudonym is drawn at random, once per patient, study or header, and says nothing
without this database; a row is written before the case that names it, and never changed. The file
is readable by its owner only. Nothing of a row is ever logged.

A patient is known by number and issuer; where the header has no number, by name and date of birth
together; else there is no pseudonym. A study is known by its UID. A header is known by all that it
says of identity, so that a later text about its picture is rid of its own spellings too.
"""

import hashlib
import secrets
from pathlib import Path
from typing import Literal

import msgspec
from sqlalchemy import UniqueConstraint, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from services.clinic.address import DatabaseAddress
from services.clinic.database import open_database
from services.clinic.transactions import Transactions
from shared.api.clinic import CaseSubject
from shared.api.headers import PatientIdentity
from shared.errors import MedvrError

SCRIPTS = Path(__file__).parent / "pseudonym_migrations"

_NOBODY = PatientIdentity()

Kind = Literal["patient", "study", "header"]


class UnknownPseudonym(MedvrError):
    """No such pseudonym was ever given."""


class PseudonymBase(DeclarativeBase):
    """The tables of the database of pseudonyms."""


class PseudonymRow(PseudonymBase):
    """A pseudonym, and the identity it was first given for."""

    __tablename__ = "pseudonyms"
    __table_args__ = (UniqueConstraint("kind", "known_as"),)

    row: Mapped[int] = mapped_column(primary_key=True)
    pseudonym: Mapped[str] = mapped_column(unique=True)
    kind: Mapped[str]
    known_as: Mapped[str]
    """By what it is found again: JSON."""
    document: Mapped[str]
    """`PatientIdentity`, as JSON."""


class Pseudonyms:
    """Gives pseudonyms and tells whose they are; safe to use from several threads."""

    def __init__(self, address: DatabaseAddress) -> None:
        """Open the database and bring it up. Raises `UnusableDatabase`."""
        self._transactions = Transactions(open_database(address, SCRIPTS))

    def close(self) -> None:
        """Close all connections."""
        self._transactions.close()

    def ping(self) -> None:
        """Ask the database for nothing. Raises `DatabaseAway`."""
        self._transactions.read(lambda session: session.execute(select(1)), is_patient=False)

    def of(self, identity: PatientIdentity) -> CaseSubject:
        """The pseudonyms of patient, study and header, given now if they had none. Durable."""
        patient, study, header = _patient_known_as(identity), identity.study_uid, None
        if identity != _NOBODY:
            header = hashlib.sha256(identity.model_dump_json().encode()).hexdigest()
        return CaseSubject(
            patient=None if patient is None else self._given("patient", patient, identity),
            study=None if study is None else self._given("study", (study,), identity),
            header=None if header is None else self._given("header", (header,), identity),
        )

    def identity(self, pseudonym: str) -> PatientIdentity:
        """The identity a pseudonym was first given for. Raises `UnknownPseudonym`."""
        statement = select(PseudonymRow.document).where(PseudonymRow.pseudonym == pseudonym)
        document = self._transactions.read(
            lambda session: session.execute(statement).scalar_one_or_none()
        )
        if document is None:
            raise UnknownPseudonym("no such pseudonym was given by this clinic")
        return PatientIdentity.model_validate_json(document)

    def _given(self, kind: Kind, known_as: tuple[str, ...], identity: PatientIdentity) -> str:
        key = msgspec.json.encode(known_as).decode()
        insert = self._transactions.insert(
            PseudonymRow,
            pseudonym=f"{kind}-{secrets.token_hex(8)}",
            kind=kind,
            known_as=key,
            document=identity.model_dump_json(),
        ).on_conflict_do_nothing(index_elements=["kind", "known_as"])
        found = select(PseudonymRow.pseudonym).where(
            PseudonymRow.kind == kind, PseudonymRow.known_as == key
        )

        def work(session: Session) -> str:
            session.execute(insert)
            return session.execute(found).scalar_one()  # another's, if that came first

        known = self._transactions.read(lambda session: session.execute(found).scalar_one_or_none())
        return self._transactions.write(work) if known is None else known


def _patient_known_as(identity: PatientIdentity) -> tuple[str, ...] | None:
    if identity.patient_id is not None:
        return ("id", identity.issuer_of_patient_id or "", identity.patient_id)
    if identity.patient_name is not None and identity.birth_date is not None:
        return ("name", identity.patient_name, identity.birth_date)
    return None
