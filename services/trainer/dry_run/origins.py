"""Where each setting came from: pydantic-settings merges its sources and does not say."""

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from pydantic_settings import BaseSettings, CliSettingsSource, EnvSettingsSource


class Origin(StrEnum):
    """The source that won, strongest last."""

    DEFAULT = "default"
    ENVIRONMENT = "environment"
    FLAG = "flag"


class SettingOrigin(NamedTuple):
    """One resolved setting, as it is printed."""

    name: str
    value: str
    """Passwords in URLs are hidden."""
    origin: Origin


def origins(settings: BaseSettings, argv: Sequence[str]) -> list[SettingOrigin]:
    """All settings in the order of their class; `argv` is what they were loaded with."""
    cls = type(settings)
    from_flags = CliSettingsSource[BaseSettings](cls, cli_parse_args=list(argv))()
    from_environment = EnvSettingsSource(cls)()
    found: list[SettingOrigin] = []
    for name in cls.model_fields:
        origin = Origin.DEFAULT
        if name in from_flags:
            origin = Origin.FLAG
        elif name in from_environment:
            origin = Origin.ENVIRONMENT
        value = re.sub(r"//[^/@]*@", "//…@", str(getattr(settings, name)))
        found.append(SettingOrigin(name, value, origin))
    return found
