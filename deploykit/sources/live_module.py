"""A `torch.nn.Module` that a program has in memory, as a definition with its own weights."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from deploykit.core.errors import UsageError, typed_first_line
from deploykit.core.specs import BATCH, ModelSpec, Preprocessing, TensorSpec
from deploykit.sources.autocast import without_autocast
from deploykit.sources.logits import find_output, logits_only, note_on_channels, output_name
from deploykit.sources.state_dict import is_additive_mask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploykit.core.choices import DefinitionChoices
    from deploykit.sources.logits import Place

IMAGE_SIZE: Final = 224
"""Assumed where the caller gives none."""

_WRAPPERS: Final = (nn.DataParallel, DistributedDataParallel, AveragedModel)


def live_module_spec(
    given: object, choices: DefinitionChoices, name: str | None = None, labels: int | None = None
) -> ModelSpec:
    """The spec of a copy of a module, on the CPU, in FP32 and in evaluation mode.

    The module itself stays as it is: its device, its types, whether it is training, its gradients
    and torch's random state. What only trains or compiles is unwrapped (``DataParallel``,
    ``AveragedModel``, ``torch.compile``). The copy is run once, on two images of noise.

    Args:
        given: the module, of images (N, 3, H, W), or (N, 1, H, W) where it takes no others.
        choices: ``image_size`` and what its outputs mean.
        name: what the bundle is called after; the name of its class where not given.
        labels: how many names its classes were given.

    Raises:
        UsageError: no module, one that cannot be copied or has no values yet, one that does not
            take such images or returns nothing that is an output; ``num_classes`` or ``arguments``
            are chosen.
    """
    if not isinstance(given, nn.Module):
        raise UsageError(
            f"a {type(given).__name__} cannot be exported\n"
            "expected a torch.nn.Module, or a TARGET as the command line takes it, a text"
        )
    module = _unwrapped(given)
    called = name or type(module).__name__.lower()
    _require_usable(module, called)
    _refuse_choices(choices, called)
    with torch.random.fork_rng(devices=[]), without_autocast():
        copy, found_types = _copied(module, called)
        size = IMAGE_SIZE if choices.image_size is None else choices.image_size
        with _untouched(module, called):
            place = find_output(copy, size, called, choices, labels)
    odd = note_on_channels(copy, place, choices.preprocessing.channel_order)
    return ModelSpec(
        name=called,
        title=f"{type(module).__name__}, a module of a program",
        inputs=(TensorSpec("input", "float32", (BATCH, place.channels, size, size)),),
        outputs=(TensorSpec(output_name(place, choices), "float32", (BATCH, *place.shape)),),
        preprocessing=Preprocessing.assumed((size, size), place.channels),
        parameters=sum(parameter.numel() for parameter in copy.parameters()),
        builder=partial(_built, copy, place),
        built_in="as the program's module had them",
        source_sha256=_digest(copy),
        preprocessing_assumed=True,
        notes=tuple(_notes(choices, size, found_types, odd)),
        head=choices.head,
    )


def _unwrapped(module: nn.Module) -> nn.Module:
    while True:
        compiled = getattr(module, "_orig_mod", None)  # of torch.compile
        if isinstance(compiled, nn.Module):
            module = compiled
        elif isinstance(module, _WRAPPERS):
            module = module.module
        else:
            return module


def _require_usable(module: nn.Module, called: str) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise UsageError(
            f"{called} is TorchScript, which cannot be exported\n"
            "give the module that it was made from"
        )
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor) or tensor.is_meta:
            why = "is not initialised" if is_lazy(tensor) else "has no values, it is on 'meta'"
            raise UsageError(
                f"{name} of {called} {why}\nrun the module once, or load its weights, before"
            )


def _refuse_choices(choices: DefinitionChoices, called: str) -> None:
    if choices.num_classes is not None or choices.arguments is not None:
        what = "num_classes" if choices.arguments is None else "arguments"
        raise UsageError(f"{called} is a module that is built already\nleave {what} out")


def _copied(module: nn.Module, called: str) -> tuple[nn.Module, frozenset[str]]:
    """A copy on the CPU in FP32, made without memory of the GPU, and what other types it had."""
    # What deepcopy finds here it takes as the copy; a tensor that was computed it would refuse.
    copies: dict[int, Any] = {id(one): _on_cpu(one) for one in _tensors(module)}
    try:
        copy = deepcopy(module, copies)
    except Exception as error:  # a module may hold anything: a lock, an open file
        raise UsageError(
            f"{called} cannot be copied, and a module that is exported is not to be changed\n"
            f"{typed_first_line(error)}\n"
            "take what cannot be copied out of it, or give a factory: path/to/file.py:factory"
        ) from error
    shared = {*map(id, module.modules()), *map(id, _tensors(module))}
    if shared & {*map(id, copy.modules()), *map(id, _tensors(copy))}:
        raise UsageError(
            f"{called} cannot be copied, and a module that is exported is not to be changed\n"
            "its copy shares modules or tensors with it: look at its __deepcopy__\n"
            "or give a factory: path/to/file.py:factory"
        )
    bad = [name for name, one in copy.state_dict().items() if _has_no_number(one)]
    if bad:
        raise UsageError(f"{bad[0]} of {called} has NaN or infinite values\ntrain it again")
    floats = {one.dtype for one in _tensors(copy) if one.is_floating_point()}
    others = frozenset(str(kind).removeprefix("torch.") for kind in floats - {torch.float32})
    return copy.requires_grad_(requires_grad=False).float().eval(), others


def _has_no_number(value: Any) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    dense = _dense(value)
    return not bool(torch.isfinite(dense).all()) and not is_additive_mask(dense)


def _dense(value: Tensor) -> Tensor:
    return value.to_dense() if value.is_sparse else value


@contextmanager
def _untouched(module: nn.Module, called: str) -> Iterator[None]:
    """Refuse a copy that runs parts of ``module``, before they run: they would learn from noise."""
    parts, found = {*map(id, module.modules())}, []

    def stop(part: nn.Module, _: Any) -> None:
        if id(part) in parts:
            found.append(type(part).__name__)
            raise RuntimeError("a part of the original")

    hook = register_module_forward_pre_hook(stop)
    try:
        yield
    except UsageError as error:
        if not found:
            raise
        raise UsageError(
            f"a copy of {called} runs the original's {found[0]}, which is not to be changed\n"
            "its forward was replaced by a function that holds the original: put its own back, or "
            "give a factory: path/to/file.py:factory"
        ) from error
    finally:
        hook.remove()


def _on_cpu(tensor: Tensor) -> Tensor:
    values = tensor.detach().to("cpu", copy=True)
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(values, requires_grad=False) if is_parameter else values


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers, and what the modules hold as plain attributes."""
    yield from module.parameters()
    yield from module.buffers()
    for part in module.modules():
        yield from (value for value in vars(part).values() if isinstance(value, Tensor))


def _digest(module: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and values of the state dict."""
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        found.update(repr((name, str(getattr(value, "dtype", None)))).encode())
        if isinstance(value, Tensor):
            found.update(repr(tuple(value.shape)).encode())
            found.update(_dense(value).contiguous().numpy().tobytes())
    return found.hexdigest()


def _built(copy: nn.Module, place: Place) -> nn.Module:
    return logits_only(deepcopy(copy), place)


def _notes(
    choices: DefinitionChoices, size: int, types: frozenset[str], odd: str | None
) -> Iterator[str]:
    if choices.image_size is None:
        yield f"an input of {size}x{size} is assumed; another: --input-size PX"
    if types:
        yield f"weights of {', '.join(sorted(types))} became float32"
    if odd is not None:
        yield odd
