"""Every error that deploykit raises on purpose.

```
DeploykitError
├── UsageError                 the call itself is wrong (also a ValueError)
│   └── UnknownNameError       no such architecture, backend, ...; carries close matches
├── MissingDependencyError     a package that this step needs is not installed
├── WeightsError               a weights file cannot be read or does not fit the definition
├── ModelFileError             an .onnx file that cannot be used
├── DataError                  images or labels that cannot be used
│   └── ImageError             an image that cannot be decoded
│       └── TooManyPixelsError ... because of its size
├── ExportError                no exporter produced a correct graph
│   └── ControlFlowError       the definition decides by its input's values: no graph can do that
├── ValidationError            a candidate differs from its reference by more than its limit
│   └── NoAnswerError          the model gave NaN for an image (also a DataError)
├── BuildError                 the compiler refused the graph
│   └── PrecisionError         the network compiled, but not in the precision that was asked
├── BundleError                a bundle that cannot be read or written
│   └── IntegrityError         a file does not have the hash that the manifest gives
│       └── SignatureError     nobody who is trusted signed the bundle as it is
├── EngineIncompatibleError    no engine of the bundle fits this machine
├── DeviceError                the GPU failed while it computed, or has too little memory
└── QueueFullError             more requests wait than the queue holds
```

A message says what was found, what would have been possible and what to do, in at most three
lines. Errors of other packages are translated where they occur, with ``raise ... from``.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def first_line(error: BaseException) -> str:
    r"""What another package's error says, its first line with words; its type where it has none.

    >>> first_line(ValueError("\n  no such shape\nframe 1"))
    'no such shape'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def typed_first_line(error: BaseException) -> str:
    """As `first_line`, with the type before it.

    >>> typed_first_line(ValueError("no such shape")), typed_first_line(KeyError())
    ('ValueError: no such shape', 'KeyError: no message')
    """
    kind = type(error).__name__
    return f"{kind}: {first_line(error)}" if str(error).strip() else f"{kind}: no message"


_BREAKS: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def one_line(name: object) -> str:
    r"""A name that somebody else gave, with control characters as escapes: it forges no line.

    >>> one_line("x\nall files are good")
    'x\\nall files are good'
    """
    return _BREAKS.sub(lambda found: found[0].encode("unicode_escape").decode(), str(name))


class DeploykitError(Exception):
    """Base of all errors; the command line turns it into one message and exit code 1.

    ``details`` are figures behind the message, as plain data, where there are any.
    """

    details: Mapping[str, Any] | None = None


class UsageError(DeploykitError, ValueError):
    """The call itself is wrong; the command line exits with code 2."""


class UnknownNameError(UsageError):
    """A name that is not known, with the names that it may have meant.

    >>> raise UnknownNameError("architecture", "resnet5", ["resnet50", "vgg16"], "deploykit list")
    Traceback (most recent call last):
    ...
    deploykit.core.errors.UnknownNameError: unknown architecture 'resnet5'
    did you mean: resnet50?
    all of them: deploykit list
    """

    def __init__(
        self, kind: str, name: str, known: Iterable[str], listing: str, meant: Iterable[str] = ()
    ) -> None:
        """``meant`` are what is suggested where the caller knows better than spelling tells."""
        self.name = name
        close = get_close_matches(name, list(known), n=3, cutoff=0.6)
        self.matches = tuple(meant) or tuple(close)
        lines = [f"unknown {kind} {name!r}"]
        if self.matches:
            lines.append(f"did you mean: {', '.join(self.matches)}?")
        lines.append(f"all of them: {listing}")
        super().__init__("\n".join(lines))


class MissingDependencyError(DeploykitError):
    """A package that this step needs is not installed; the message holds the install line."""


class WeightsError(DeploykitError):
    """A weights file cannot be read, is not trusted, or does not fit the definition."""


class ModelFileError(DeploykitError):
    """An ``.onnx`` file is damaged, unsafe or not a model that deploykit can use."""


class DataError(DeploykitError):
    """Images or labels cannot be read or do not fit the model."""


class ImageError(DataError):
    """An image cannot be decoded.

    ``for_sender`` is the message for whoever sent it to a program: without that program's options
    and packages, which the sender cannot change.
    """

    def __init__(self, message: str, for_sender: str) -> None:
        self.for_sender = for_sender
        super().__init__(message)


class TooManyPixelsError(ImageError):
    """An image has more pixels than the limit; ``pixels`` are those that it has."""

    def __init__(self, message: str, for_sender: str, pixels: int) -> None:
        self.pixels = pixels
        super().__init__(message, for_sender)


class ExportError(DeploykitError):
    """No exporter produced a graph that computes what the definition computes."""


class ControlFlowError(ExportError):
    """The definition decides by the values of its input, which no single graph can."""


class ValidationError(DeploykitError):
    """A candidate differs from its reference by more than the limit of its precision."""


class NoAnswerError(ValidationError, DataError):
    """The model gave NaN or infinite values for an image, which the others do not suffer from."""


class BuildError(DeploykitError):
    """The engine compiler refused the graph."""


class PrecisionError(BuildError):
    """The network was parsed, but its layers are not in the precision that was asked."""


class BundleError(DeploykitError):
    """A bundle cannot be read or written."""


class IntegrityError(BundleError):
    """A file of a bundle does not have the hash that the manifest gives."""


class SignatureError(IntegrityError):
    """A bundle is not signed, or not as it is, or by nobody who is trusted."""


class EngineIncompatibleError(DeploykitError):
    """No engine of the bundle fits this machine."""


class DeviceError(DeploykitError):
    """The GPU failed while it computed, or has too little memory; the message says which.

    A failure of the GPU (illegal address, launch failure, ...) stays: every later call of the same
    process fails too. Start the process again.
    """


class QueueFullError(DeploykitError):
    """More requests wait than the queue holds: try later, or send the caller away (HTTP 503)."""
