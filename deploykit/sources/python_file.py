"""A factory in a user's own Python file: ``path/to/file.py:factory``.

The file is run, because the user named it. Nothing else that deploykit reads is ever run.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from deploykit.core.artifacts import sha256_of
from deploykit.core.errors import UnknownNameError, UsageError
from deploykit.core.specs import BATCH, ModelSpec, Preprocessing, TensorSpec
from deploykit.sources.logits import find_output, logits_only, note_on_channels, output_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from deploykit.core.choices import DefinitionChoices
    from deploykit.sources.logits import Place

IMAGE_SIZE: Final = 224
"""Assumed where the user gives none."""

_MODULE: Final = "deploykit_user_definition"


def python_file_spec(path: Path, factory: str, choices: DefinitionChoices) -> ModelSpec:
    """The spec of the module that ``factory`` of the Python file at ``path`` returns.

    The factory is called once here, to see what it makes of one batch of noise, and again by
    ``build``. Weights in another floating point type become FP32.

    Raises:
        UsageError: there is no such file or factory, it raises, needs other arguments, returns no
            module, or a module whose outputs are not those of the head; ``num_classes`` is chosen.
    """
    name = f"{path.stem}-{factory}"
    if choices.num_classes is not None:
        raise UsageError(
            f"--num-classes does not reach {path.name}:{factory}\n"
            "give its own argument: --factory-args '{\"num_classes\": N}'"
        )
    make = partial(_make, path, factory, dict(choices.arguments or {}))
    size = choices.image_size or IMAGE_SIZE
    with torch.random.fork_rng(devices=[]):
        network, found_types = make()
        called = f"{path.name}:{factory}"
        place = find_output(network, size, called, choices)
    odd = note_on_channels(network, place, choices.preprocessing.channel_order)
    return ModelSpec(
        name=name,
        title=f"{factory} of {path.name}",
        inputs=(TensorSpec("input", "float32", (BATCH, place.channels, size, size)),),
        outputs=(TensorSpec(output_name(place, choices), "float32", (BATCH, *place.shape)),),
        preprocessing=Preprocessing.assumed((size, size), place.channels),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        builder=partial(_deployed, make, place),
        built_in=f"as {path.name}:{factory} made them",
        source_sha256=sha256_of(path),
        preprocessing_assumed=True,
        notes=tuple(_notes(choices, size, found_types, odd)),
        head=choices.head,
    )


def _notes(
    choices: DefinitionChoices, size: int, types: frozenset[str], odd: str | None
) -> Iterator[str]:
    if choices.image_size is None:
        yield f"an input of {size}x{size} is assumed; another: --input-size PX"
    if types:
        yield f"weights of {', '.join(sorted(types))} became float32"
    if odd is not None:
        yield odd


def _deployed(make: Callable[[], tuple[nn.Module, frozenset[str]]], place: Place) -> nn.Module:
    return logits_only(make()[0], place)


def _make(path: Path, factory: str, arguments: dict[str, Any]) -> tuple[nn.Module, frozenset[str]]:
    """The network in FP32, and what other types its weights had."""
    called = f"{path.name}:{factory}"
    function = _factory(path, factory)
    _require_arguments(function, arguments, called)
    with _importing_beside(path), torch.device("cpu"):
        try:
            network = function(**arguments)
        except Exception as error:  # a user's own code can raise anything
            raise UsageError(f"{called} raised {_where(error, path)}") from error
    if not isinstance(network, nn.Module):
        raise UsageError(
            f"{called} returned a {type(network).__name__}\n"
            "expected a torch.nn.Module: a function that builds one, or its class"
        )
    tensors = (*network.parameters(), *network.buffers())
    floats = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    others = frozenset(str(kind).removeprefix("torch.") for kind in floats - {torch.float32})
    return network.float(), others


def _factory(path: Path, factory: str) -> Callable[..., Any]:
    module = _run_file(path)
    function = getattr(module, factory, None)
    if callable(function):
        return function  # type: ignore[no-any-return]  # getattr knows no type
    if function is not None:
        raise UsageError(
            f"{factory} of {path.name} is a {type(function).__name__}, which cannot be called\n"
            "expected a function that returns a torch.nn.Module, or its class"
        )
    known = [name for name, value in vars(module).items() if _is_own(value, module.__name__)]
    raise UnknownNameError(f"factory of {path.name}", factory, known, ", ".join(known) or "none")


def _is_own(value: object, module: str) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module


def _run_file(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"there is no file {path}\nexpected path/to/file.py:factory")
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file\nexpected path/to/file.py:factory")
    module = importlib.util.module_from_spec(spec)
    with _importing_beside(path):
        # Dataclasses and torch.export look a class's module up by its name.
        sys.modules[_MODULE] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # a user's own code can raise anything
            raise UsageError(f"{path.name} cannot be imported: {_where(error, path)}") from error
    return module


@contextmanager
def _importing_beside(path: Path) -> Iterator[None]:
    """As ``python file.py`` does: modules beside the file can be imported by it."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _require_arguments(
    function: Callable[..., Any], arguments: Mapping[str, Any], called: str
) -> None:
    try:
        signature = inspect.signature(function)
        signature.bind(**arguments)
    except TypeError as error:
        raise UsageError(
            f"{called}{signature} cannot be called so: {error}\n"
            "give its arguments as JSON: --factory-args '{\"depth\": 18}'"
        ) from error
    except ValueError:  # written in C, without a signature
        return


def _where(error: Exception, path: Path) -> str:
    """The error with the last line of the user's file that led to it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    line = own[-1].lineno if own else getattr(error, "lineno", None)
    said = next(iter(str(error).splitlines()), "") or "without a message"
    place = f"\nline {line} of {path.name}: {own[-1].line}" if own else f"\nline {line}"
    return f"{type(error).__name__}: {said}{place if line else ''}"
