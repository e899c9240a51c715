"""Manifests for KServe, validated against its published schema."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from deploykit.bundle.manifest import MANIFEST, Bundle
from deploykit.core.errors import UsageError
from deploykit.packaging import PackageChoices, place_named
from deploykit.packaging._triton_containers import triton_containers
from tests.bundles import engine_record, write_bundle

jsonschema = pytest.importorskip("jsonschema")
yaml = pytest.importorskip("yaml")

SCHEMA = json.loads(Path(__file__).with_name("inferenceservice_schema.json").read_text("utf-8"))
URI = "pvc://models/résumé: #1"
"""Characters that mean something in YAML."""


def service(tmp_path: Path, *engines: Any, **choices: Any) -> dict[str, Any]:
    bundle = Bundle.open(write_bundle(tmp_path / "bundle", *engines))
    folder = tmp_path / "package"
    folder.mkdir()
    choices = {"storage_uri": URI.replace(" ", "-"), **choices}
    place_named("kserve").write(bundle, folder, PackageChoices(**choices))
    found = yaml.safe_load((folder / "inferenceservice.yaml").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(SCHEMA).validate(found)
    assert isinstance(found, dict)
    return found


def test_triton_serves_the_repository(tmp_path: Path) -> None:
    known = triton_containers()[0]
    found = service(tmp_path, engine_record(compiler_version=known.tensorrt))
    model = found["spec"]["predictor"]["model"]
    assert model["modelFormat"] == {"name": "triton", "version": "2"}
    assert model["storageUri"] == URI.replace(" ", "-")
    assert model["image"] == known.image
    assert model["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    assert (tmp_path / "package/models/colours-fp32/config.pbtxt").is_file()
    page = (tmp_path / "package/README.md").read_text(encoding="utf-8")
    assert "`models/`" in page
    assert "TRITON.md" in page
    assert (tmp_path / "package/TRITON.md").is_file()


def test_the_page_says_that_plans_are_compiled_before_the_upload(tmp_path: Path) -> None:
    """In the container that serves: plans of another would not load."""
    found = service(tmp_path)
    page = (tmp_path / "package/README.md").read_text(encoding="utf-8")
    assert 0 < page.find("\n./build.sh\n") < page.find("\nUpload what is in")
    script = (tmp_path / "package/build.sh").read_text(encoding="utf-8")
    assert f"image={found['spec']['predictor']['model']['image']}\n" in script


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("engines", [(), (engine_record(),)])
def test_the_page_names_what_is_in_the_folder_and_no_more(
    engines: tuple[Any, ...], own: bool, tmp_path: Path
) -> None:
    service(tmp_path, *engines, **({"server": "deploykit", "image": "a"} if own else {}))
    page = (tmp_path / "package/README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    found = {path.name for path in (tmp_path / "package").iterdir()}
    assert {name.rstrip("/") for name in listed} == found - {"README.md"}
    assert ("build.sh" in page) == ("build.sh" in found)


def test_an_unknown_container_is_left_to_the_runtime(tmp_path: Path) -> None:
    found = service(tmp_path, engine_record())
    assert "image" not in found["spec"]["predictor"]["model"]


def test_the_own_service_reads_the_bundle(tmp_path: Path) -> None:
    found = service(tmp_path, engine_record(), server="deploykit", image="colours:1")
    (container,) = found["spec"]["predictor"]["containers"]
    assert container["name"] == "kserve-container"
    assert container["image"] == "colours:1"
    assert [*container["command"], *container["args"]] == [
        *("deploykit", "serve", "/mnt/models", "--host", "0.0.0.0"),  # noqa: S104 - in a pod
        *("--http-port", "8080", "--grpc-port", "8081"),
    ]
    assert container["env"] == [{"name": "STORAGE_URI", "value": URI.replace(" ", "-")}]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert (tmp_path / "package/bundle" / MANIFEST).is_file()


def test_without_an_engine_no_gpu_is_asked_for(tmp_path: Path) -> None:
    found = service(tmp_path, server="deploykit", image="colours:1")
    assert "resources" not in found["spec"]["predictor"]["containers"][0]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({}, "--storage-uri is nothing"),
        ({"storage_uri": "models/resnet50"}, "--storage-uri is 'models/resnet50'"),
        ({"storage_uri": "s3://a b"}, "--storage-uri is 's3://a b'"),
        ({"storage_uri": "s3://a", "server": "mine"}, "--server mine\npossible: triton, deploykit"),
        ({"storage_uri": "s3://a", "server": "deploykit"}, "--server deploykit needs --image"),
    ],
)
def test_what_the_call_lacks(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        place_named("kserve").require(PackageChoices(**choices))


@pytest.mark.parametrize("wrong", ["storageURI", "runtimes"])
def test_a_misspelt_field_would_be_found(wrong: str, tmp_path: Path) -> None:
    found = service(tmp_path)
    found["spec"]["predictor"]["model"][wrong] = "x"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(found)
