"""Settings: defaults < environment < flags, one frozen class per service.

A subclass gives the prefix (`MEDVR_ZOOM_`) and one annotated field with a docstring per setting;
the docstrings are the `--help`. pydantic-settings ignores an unknown variable silently, so a
misspelt one would go unnoticed for hours: `load_settings` refuses it.
"""

import os
import re
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NoReturn, Self, TypeVar

from pydantic import AfterValidator, BeforeValidator, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

S = TypeVar("S", bound=BaseSettings)


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _url(*schemes: str) -> Callable[[str], str]:
    """A validator: the address is a URL of one of the schemes."""

    def check(url: str) -> str:
        scheme, separator, rest = url.partition("://")
        if scheme not in schemes or not separator or not rest:
            raise ValueError(f"must start with {' or '.join(f'{s}://' for s in schemes)}")
        return url

    return check


LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)]
HttpUrl = Annotated[str, AfterValidator(_url("http", "https"))]
RedisUrl = Annotated[str, AfterValidator(_url("redis", "rediss", "unix"))]


class ServiceSettings(BaseSettings):
    """Base of every service's settings; subclasses set `model_config = settings_config(...)`."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True)  # for what is inherited

    log_level: LogLevel = "INFO"
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
        refuse(
            f"unknown environment variable {', '.join(unknown)}; accepted: {accepted}"
            f"{_kubernetes_hint(*(os.environ[name] for name in unknown))}"
        )
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return cls(_cli_parse_args=arguments)  # pyright: ignore[reportCallIssue]
    except ValidationError as error:
        problems = error.errors(include_url=False)
        refuse("; ".join(_describe(cls, problem) for problem in problems))
    except SettingsError as error:
        refuse(str(error))


def _describe(cls: type[BaseSettings], problem: ErrorDetails) -> str:
    """One mistake: the setting, what is wrong, what was given, and how it is given."""
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:  # settings that contradict each other: the message names them
        return message
    name = str(problem["loc"][0])
    variable = f"{cls.model_config.get('env_prefix', '')}{name}".upper()
    how = f"flag --{name.replace('_', '-')}, variable {variable}"
    if problem["type"] == "missing":
        return f"{name}: {message} ({how})"
    given: Any = problem["input"]
    shown = _without_passwords(repr(given))
    return f"{name}: {message} (got {shown}; {how}){_kubernetes_hint(given)}"


def _without_passwords(text: str) -> str:
    """The text fit for a log; of a URL that is malformed rather too much is left out."""
    return re.sub(r"(password=)[^&\s'\"]*", r"\1…", re.sub(r"//\S*@", "//…@", text))


def _kubernetes_hint(*values: object) -> str:
    """What to do about `MEDVR_ZOOM_PORT=tcp://10.0.0.7:8120`."""
    if not any(str(value).startswith(("tcp://", "udp://")) for value in values):
        return ""
    return (
        "; a value like tcp://… is Kubernetes' own for a Service of that name: "
        "set enableServiceLinks: false in the pod"
    )


def refuse(message: str) -> NoReturn:
    """End the process: these settings cannot be."""
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(2)


def positive(text: str) -> int:
    """A whole number from 1 on, as a type of `argparse`."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)
