"""Settings: defaults < environment < flags, one frozen class per service.

A subclass gives the prefix (`MEDVR_ZOOM_`) and one annotated field with a docstring per setting;
the docstrings are the `--help`. pydantic-settings ignores an unknown variable silently, so a
misspelt one would go unnoticed for hours: `load_settings` refuses it.
"""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn, Self, TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

S = TypeVar("S", bound=BaseSettings)


class ServiceSettings(BaseSettings):
    """Base of every service's settings; subclasses set `model_config = settings_config(...)`."""

    log_level: str = "INFO"
    """Least level that is logged: DEBUG, INFO, WARNING or ERROR."""

    @classmethod
    def load(cls, argv: Sequence[str] | None = None) -> Self:
        """Read environment and flags; on a mistake print what was wrong and exit with 2."""
        return load_settings(cls, argv)


def settings_config(service: str) -> SettingsConfigDict:
    """The pydantic-settings configuration of a service (`zoom` → `MEDVR_ZOOM_`)."""
    return SettingsConfigDict(
        env_prefix=f"MEDVR_{service.upper()}_",
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        cli_prog_name=f"medvr {service}",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )


def _unknown_variables(cls: type[BaseSettings]) -> list[str]:
    prefix = str(cls.model_config.get("env_prefix", ""))
    known = {f"{prefix}{name}".upper() for name in cls.model_fields}
    return sorted(
        name for name in os.environ if name.upper().startswith(prefix) and name.upper() not in known
    )


def load_settings(cls: type[S], argv: Sequence[str] | None = None) -> S:
    """Settings from environment and flags; exits with 2 and a plain message on a mistake."""
    unknown = _unknown_variables(cls)
    if unknown:
        prefix = cls.model_config.get("env_prefix", "")
        accepted = ", ".join(f"{prefix}{name}".upper() for name in cls.model_fields)
        _refuse(f"unknown environment variable {', '.join(unknown)}; accepted: {accepted}")
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return cls(_cli_parse_args=arguments)  # pyright: ignore[reportCallIssue]
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in e['loc']) or 'settings'}: {e['msg']} "
            f"(got {e['input']!r})"
            for e in error.errors()
        ]
        _refuse("; ".join(problems))
    except SettingsError as error:
        _refuse(str(error))


def _refuse(message: str) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(2)
