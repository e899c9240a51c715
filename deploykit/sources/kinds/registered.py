"""An architecture of `deploykit list`: ``resnet50``."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deploykit.core.errors import UsageError
from deploykit.models import get, names
from deploykit.sources.kinds._kind import TargetKind

if TYPE_CHECKING:
    from deploykit.core.choices import DefinitionChoices
    from deploykit.core.specs import ModelSpec

_IMAGENET_CLASSES: Final = 1000

_REPOSITORY: Final = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
"""As in ``microsoft/resnet-50``."""


class Registered(TargetKind):
    """A name of the registry; its weights are those of the same network in torchvision."""

    def takes(self, target: str) -> bool:
        """Whether an architecture has this name."""
        return target in names()

    def require(self, target: str) -> None:
        """Whether there is an architecture of this name.

        Raises:
            UnknownNameError: there is none.
            UsageError: it is a file of another kind, or the name of a repository of a hub.
        """
        _refuse_file(target)
        _refuse_repository(target)
        if target not in names() and not Path(target).is_dir():
            get(target)  # says which names are close

    def spec(self, target: str, choices: DefinitionChoices) -> ModelSpec:
        """The registry's.

        Raises:
            UsageError: it is a file of another kind, as a TorchScript program.
        """
        _refuse_file(target)
        _refuse_repository(target)
        from deploykit.sources.torchvision import imagenet_names, torchvision_weights

        spec = get(target, num_classes=choices.num_classes, image_size=choices.image_size)
        is_imagenet = choices.num_classes is None and spec.num_classes == _IMAGENET_CLASSES
        return replace(
            spec,
            published=torchvision_weights,
            class_names=imagenet_names if is_imagenet else None,
        )


def _refuse_file(target: str) -> None:
    """Stop where a file is given that is no network, with the way to one."""
    path = Path(target)
    if not path.is_file():
        return
    from deploykit.sources.state_dict import is_torchscript, torchscript_to_onnx

    if is_torchscript(path):
        raise UsageError(
            f"{target} is a TorchScript program of torch.jit.save\n"
            f"make an .onnx file of it: {torchscript_to_onnx(path)}\n"
            f"then: deploykit export {path.stem}.onnx"
        )
    raise UsageError(
        f"{target} is a file, and no kind of file that holds a network\n"
        "possible: an .onnx file, path/to/file.py:factory, a folder of Hugging Face or a bundle\n"
        f"a file of weights goes with a network: deploykit export resnet50 --weights {target}"
    )


def _refuse_repository(target: str) -> None:
    if _REPOSITORY.fullmatch(target) and not Path(target).exists():
        folder = target.partition("/")[2]
        raise UsageError(
            f"{target} is neither a file nor a folder here; is it a repository of the Hugging Face "
            f"hub?\ndownload it first: hf download {target} --local-dir {folder}\n"
            f"then: deploykit export {folder}"
        )


KIND = Registered()
