"""From a PyTorch image classifier to a verified, measured TensorRT engine.

```
model = deploykit.load("engines/resnet50-fp16")
logits = model.run(batch)                        # (N, C, H, W) float32
top = model.predict(["cat.jpg", pixels], top_k=5)
```

The names below are looked up when they are first used: ``import deploykit`` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from deploykit._version import __version__

if TYPE_CHECKING:
    from deploykit.bundle.sigstore import SigstoreIdentity
    from deploykit.core.errors import DeploykitError
    from deploykit.heads.multiclass import Prediction
    from deploykit.runtime.classifier import Classifier
    from deploykit.runtime.inputs import BatchSplitWarning
    from deploykit.runtime.loading import load
    from deploykit.serving.micro_batcher import MicroBatcher

__all__ = [
    "BatchSplitWarning",
    "Classifier",
    "DeploykitError",
    "MicroBatcher",
    "Prediction",
    "SigstoreIdentity",
    "__version__",
    "load",
]

_HOMES: Final = {
    "BatchSplitWarning": "deploykit.runtime.inputs",
    "Classifier": "deploykit.runtime.classifier",
    "DeploykitError": "deploykit.core.errors",
    "MicroBatcher": "deploykit.serving.micro_batcher",
    "Prediction": "deploykit.heads.multiclass",
    "SigstoreIdentity": "deploykit.bundle.sigstore",
    "load": "deploykit.runtime.loading",
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
