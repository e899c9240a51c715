"""From a network that takes images to a verified, measured TensorRT engine.

```
bundle = deploykit.export(module, precision="fp16", input_size=224, labels=names)
model = deploykit.load(bundle)
logits = model.run(batch)                        # (N, C, H, W) float32
top = model.predict("cat.jpg", top_k=5)          # of a list of images a list of such lists
```

The names below are looked up when they are first used: ``import deploykit`` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from deploykit._version import __version__

if TYPE_CHECKING:
    from deploykit.bundle.manifest import Bundle
    from deploykit.bundle.sigstore import SigstoreIdentity
    from deploykit.cli._recipe_call import run_recipe
    from deploykit.core.errors import DeploykitError
    from deploykit.heads.multiclass import Prediction
    from deploykit.runtime.classifier import Classifier
    from deploykit.runtime.inputs import BatchSplitWarning
    from deploykit.runtime.loading import load
    from deploykit.serving.micro_batcher import MicroBatcher
    from deploykit.verbs.from_python import (
        bench,
        calibrate,
        estimate,
        evaluate,
        export,
        inspect,
        open_bundle,
        package,
        validate,
        visualize,
    )

__all__ = [
    "BatchSplitWarning",
    "Bundle",
    "Classifier",
    "DeploykitError",
    "MicroBatcher",
    "Prediction",
    "SigstoreIdentity",
    "__version__",
    "bench",
    "calibrate",
    "estimate",
    "evaluate",
    "export",
    "inspect",
    "load",
    "open_bundle",
    "package",
    "run_recipe",
    "validate",
    "visualize",
]

_HOMES: Final = {
    "BatchSplitWarning": "deploykit.runtime.inputs",
    "Bundle": "deploykit.bundle.manifest",
    "Classifier": "deploykit.runtime.classifier",
    "DeploykitError": "deploykit.core.errors",
    "MicroBatcher": "deploykit.serving.micro_batcher",
    "Prediction": "deploykit.heads.multiclass",
    "SigstoreIdentity": "deploykit.bundle.sigstore",
    "load": "deploykit.runtime.loading",
    "run_recipe": "deploykit.cli._recipe_call",
    **dict.fromkeys(
        (
            "bench",
            "calibrate",
            "estimate",
            "evaluate",
            "export",
            "inspect",
            "open_bundle",
            "package",
            "validate",
            "visualize",
        ),
        "deploykit.verbs.from_python",
    ),
}


if not TYPE_CHECKING:  # a type checker would take every name for one of ours

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'deploykit' has no attribute {name!r}")
        found = getattr(import_module(_HOMES[name]), name)
        globals()[name] = found  # Python asks here only for names that are missing
        return found


def __dir__() -> list[str]:
    return sorted(__all__)
