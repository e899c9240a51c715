"""Messages of a compiler, kept instead of printed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

_ERRORS: Final = ("INTERNAL_ERROR", "ERROR")
_WARNING: Final = "WARNING"
# Follows nearly every error on a machine without a driver, whatever the error was.
_ECHO: Final = "catchCudaError"
# "In validate at /_src/optimizer/api/network.cpp:4023": a place in the vendor's own source.
_SOURCE_PLACE: Final = re.compile(r"\s*\(?In \w+ at \S+:\d+(?=\s|\)|$)")


@dataclass
class Messages:
    """Errors and warnings of one compilation in the order in which they came."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, severity: str, text: str) -> None:
        """Keep errors and each different warning; information and debug lines are dropped."""
        line = clean(text)
        if severity in _ERRORS:
            self.errors.append(line)
        elif severity == _WARNING and line not in self.warnings:
            self.warnings.append(line)

    def reason(self) -> str:
        """The most telling line about a failure: the first error that is not an echo of another."""
        telling = [line for line in self.errors if _ECHO not in line]
        candidates = [*telling, *self.errors, *reversed(self.warnings)]
        return candidates[0] if candidates else "it gave no reason"


def clean(text: str) -> str:
    """One line without the places in the vendor's source code.

    >>> clean(" Error Code 4: no profile. In validate at /_src/api/network.cpp:4023)")
    'Error Code 4: no profile.)'
    """
    return " ".join(_SOURCE_PLACE.sub("", text).split())


def logger_into(messages: Messages, module: Any) -> Any:
    """An ``ILogger`` of ``module`` that writes to ``messages``.

    The base class comes with the module, so the class is made here. It has no constructor of its
    own: the binding requires that the inherited one runs.
    """

    def log(_self: Any, severity: Any, msg: str) -> None:
        messages.add(severity.name, msg)

    return type("MessageLogger", (module.ILogger,), {"log": log})()
