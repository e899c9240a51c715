"""An InferenceService of KServe, and the model folder that it reads."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, ClassVar, Final

from deploykit._version import __version__
from deploykit.core.errors import UsageError
from deploykit.packaging._place import (
    PackageChoices,
    Packed,
    ShippingPlace,
    asset,
    copy_bundle,
    place_named,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from deploykit.bundle.manifest import Bundle

TRITON_SERVER: Final = "triton"
OWN_SERVER: Final = "deploykit"
MANIFEST_FILE: Final = "inferenceservice.yaml"
BUNDLE_FOLDER: Final = "bundle"
MODELS_FOLDER: Final = "models"
"""Of a model repository, as the place triton writes it."""

_HTTP_PORT: Final = 8080
"""Where KServe expects a container of one's own to answer."""
_LONGEST_NAME: Final = 48
"""Of an InferenceService: Kubernetes allows 63 characters, and KServe puts suffixes behind it."""

_URI: Final = re.compile(r"[a-z][a-z0-9+.-]*://\S+")


class KServe(ShippingPlace):
    """A manifest for KServe's Triton runtime, or for the container of ``--to docker``."""

    summary = "an InferenceService of KServe with its model folder"
    choices: ClassVar[frozenset[str]] = frozenset({"image", "server", "storage_uri"})

    def require(self, choices: PackageChoices) -> None:
        """Refuse a call without the address, or without the image of one's own service.

        Raises:
            UsageError: it is.
        """
        if choices.storage_uri is None or not _URI.fullmatch(choices.storage_uri):
            given = "nothing" if choices.storage_uri is None else repr(choices.storage_uri)
            raise UsageError(
                f"KServe reads the model from an address, and --storage-uri is {given}\n"
                "say where the model folder will be uploaded: --storage-uri pvc://models/resnet50, "
                "s3://..., gs://..., https://..."
            )
        if choices.server not in (None, TRITON_SERVER, OWN_SERVER):
            raise UsageError(f"--server {choices.server}\npossible: {TRITON_SERVER}, {OWN_SERVER}")
        if choices.server == OWN_SERVER and choices.image is None:
            raise UsageError(
                "--server deploykit needs --image: the container to run\n"
                "it is built from the folder of: deploykit package BUNDLE --to docker"
            )

    def write(self, bundle: Bundle, folder: Path, choices: PackageChoices) -> Packed:
        """Fill ``folder``."""
        own = choices.server == OWN_SERVER
        if own:
            packed = _own_service(bundle, folder, choices)
            model_folder = BUNDLE_FOLDER
        else:
            triton = place_named(TRITON_SERVER)
            packed = triton.write(bundle, folder, PackageChoices(image=choices.image))
            (folder / "README.md").rename(folder / "TRITON.md")
            model_folder = MODELS_FOLDER
        has_gpu = bool(bundle.manifest.engines) if own else True
        service = inference_service(bundle, choices, packed.facts, has_gpu=has_gpu)
        (folder / MANIFEST_FILE).write_text(_yaml(service), encoding="utf-8")
        text = asset(
            "kserve.md",
            name=bundle.manifest.name,
            version=__version__,
            created=bundle.manifest.created,
            precision=str(bundle.manifest.precision),
            service=service["metadata"]["name"],
            folder=model_folder,
            uri=str(choices.storage_uri),
            server=_SERVERS[own],
            rows=_rows(folder),
            build=_BUILD if packed.facts.get("build") else "",
            notes="".join(f"\nNote: {note}.\n" for note in packed.notes),
        )
        (folder / "README.md").write_text(text, encoding="utf-8")
        facts = {**packed.facts, "server": choices.server or TRITON_SERVER}
        return Packed({**facts, "service": service["metadata"]["name"]}, packed.notes)


_SERVERS: Final[Mapping[bool, str]] = {
    False: "KServe's runtime for Triton (`kserve-tritonserver`); TRITON.md says what the "
    "repository in `models/` holds, and which container loads it",
    True: "the container of `deploykit package --to docker`, which reads the bundle in `bundle/` "
    "in place of its own",
}


_BESIDE: Final = (
    ("TRITON.md", "what the model repository holds, and which container loads it"),
    ("build.sh", "compiles the plans, before the upload"),
    ("config.tensorrt.pbtxt", "the configuration that `build.sh` puts into the model folder"),
    ("source", "the graph that `build.sh` compiles"),
)
"""What a package for Triton has beside the model folder, and what it is; none of it is uploaded."""

_BUILD: Final = """## Before the upload: the plans

On a machine with the GPU of the cluster's nodes, docker and NVIDIA's container toolkit:

```
./build.sh
```

It compiles the plans into the model folder, in the container that `inferenceservice.yaml` names.
Without it Triton runs the graph on onnxruntime. TRITON.md says more.

"""


def _rows(folder: Path) -> str:
    """Lines of the table of what is inside."""
    there = [(name, what) for name, what in _BESIDE if (folder / name).exists()]
    return "".join(f"\n| `{name}` | {what} |" for name, what in there)


def inference_service(
    bundle: Bundle, choices: PackageChoices, facts: Mapping[str, Any], *, has_gpu: bool
) -> dict[str, Any]:
    """The manifest, by the schema of ``serving.kserve.io/v1beta1``."""
    resources = {"resources": {"limits": {"nvidia.com/gpu": "1"}}} if has_gpu else {}
    if choices.server == OWN_SERVER:
        predictor: dict[str, Any] = {"containers": [_own_container(choices, resources)]}
    else:
        predictor = {"model": _triton_model(choices, facts, resources)}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": service_name(bundle.manifest.name)},
        "spec": {"predictor": predictor},
    }


def service_name(name: str) -> str:
    """A name that Kubernetes allows: of a label of DNS (RFC 1123), beginning with a letter.

    >>> service_name("ResNet50_fp16"), service_name("7b")
    ('resnet50-fp16', 'model-7b')
    """
    found = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "model"
    found = found if found[0].isalpha() else f"model-{found}"
    return found[:_LONGEST_NAME].rstrip("-")


def _triton_model(
    choices: PackageChoices, facts: Mapping[str, Any], resources: Mapping[str, Any]
) -> dict[str, Any]:
    found = {
        # A repository with its configuration, whatever platform that names.
        "modelFormat": {"name": "triton", "version": "2"},
        "runtime": "kserve-tritonserver",
        "protocolVersion": "v2",
        "storageUri": choices.storage_uri,
        **resources,
    }
    # KServe's own release of the container would not load the plans.
    return {**found, "image": facts["container"]} if facts["container"] else found


def _own_container(choices: PackageChoices, resources: Mapping[str, Any]) -> dict[str, Any]:
    ready = {"httpGet": {"path": "/v2/health/ready", "port": _HTTP_PORT}}
    return {
        "name": "kserve-container",
        "image": choices.image,
        "command": ["deploykit", "serve", "/mnt/models"],
        "args": ["--host", "0.0.0.0", "--http-port", str(_HTTP_PORT), "--grpc-port", "8081"],  # noqa: S104 - in a pod
        # KServe downloads what is there to /mnt/models, before the container starts.
        "env": [{"name": "STORAGE_URI", "value": choices.storage_uri}],
        "ports": [{"containerPort": _HTTP_PORT, "name": "http1", "protocol": "TCP"}],
        "readinessProbe": {**ready, "periodSeconds": 15, "timeoutSeconds": 10},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "runAsUser": 10001,
        },
        **resources,
    }


def _own_service(bundle: Bundle, folder: Path, choices: PackageChoices) -> Packed:
    copy_bundle(bundle, folder / BUNDLE_FOLDER)
    notes = () if bundle.manifest.engines else ("the bundle has no engine: it runs on the CPU",)
    return Packed({"container": choices.image}, notes)


def _yaml(value: Mapping[str, Any]) -> str:
    """Block YAML of plain data; every text is in quotes, as JSON has it, which YAML reads."""
    return "\n".join(_yaml_lines(value, 0)) + "\n"


def _yaml_lines(value: Any, depth: int) -> list[str]:
    indent, lines = "  " * depth, []
    for key, item in value.items():
        name = key if re.fullmatch(r"[A-Za-z]+", key) else json.dumps(key)
        if isinstance(item, dict):
            lines += [f"{indent}{name}:", *_yaml_lines(item, depth + 1)]
        elif isinstance(item, list) and item and isinstance(item[0], dict):
            lines.append(f"{indent}{name}:")
            for each in item:
                inner = _yaml_lines(each, depth + 1)
                lines += [f"{indent}- {inner[0].lstrip()}", *inner[1:]]
        else:
            lines.append(f"{indent}{name}: {json.dumps(item)}")
    return lines


PLACE = KServe()
