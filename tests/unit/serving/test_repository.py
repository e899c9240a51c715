"""Names and versions of what is served, limits, metrics of GPUs, spans."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

import deploykit
from deploykit.core.errors import BundleError, UsageError, ValidationError
from deploykit.serving.limits import ServiceLimits
from deploykit.serving.metrics import GpuMemory, Metrics
from deploykit.serving.refusals import RefusedError
from deploykit.serving.repository import (
    BundlePlace,
    BundleRepository,
    places_in,
    require_distinct,
    require_golden,
)
from deploykit.serving.tracing import Tracer
from tests.bundles import write_bundle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploykit.serving.served_model import ServingModel


def test_a_bundle_stands_alone_or_is_a_version(tmp_path: Path) -> None:
    alone = write_bundle(tmp_path / "colours")
    (tmp_path / "many").mkdir()
    for name in ("1", "10", "9"):
        write_bundle(tmp_path / "many" / name)
    found = places_in([alone, tmp_path / "many"])
    assert found[0] == BundlePlace(alone)
    assert {(each.name, each.version) for each in found[1:]} == {
        ("many", "1"), ("many", "9"), ("many", "10"),
    }  # fmt: skip


def test_a_folder_without_versions_is_refused(tmp_path: Path) -> None:
    write_bundle(tmp_path / "colours")
    with pytest.raises(BundleError, match=r"is no bundle and has no versions of one.*\nit holds"):
        places_in([tmp_path])
    write_bundle(tmp_path / "2")
    with pytest.raises(BundleError, match=r"bundles that are no versions beside its .*: colours\n"):
        places_in([tmp_path])


def served(name: str, version: str) -> ServingModel:
    return cast("ServingModel", SimpleNamespace(name=name, version=version))


def test_the_highest_version_answers_for_its_name() -> None:
    models = BundleRepository([served("a", "9"), served("a", "10"), served("b", "1")])
    assert models.find("a").version == "10"
    assert models.find("a", "9").version == "9"
    assert models.versions_of("a") == ["9", "10"]
    with pytest.raises(RefusedError, match="there is no model 'c', there are: a, b"):
        models.find("c")
    with pytest.raises(RefusedError, match="a has no version '11', it has: 9, 10"):
        models.find("a", "11")


@pytest.mark.parametrize("second", ["other", "one"])
def test_two_of_one_name_and_version_are_refused(second: str) -> None:
    """Also one folder given twice."""
    places = [BundlePlace(Path("one")), BundlePlace(Path("one"), version="2")]
    require_distinct(("a", each) for each in places)
    with pytest.raises(
        UsageError,
        match=rf"called a, version 1: one and {second}\nput versions .* a/1 and a/2, and give a\n"
        "put another model into OTHER/1, and give OTHER: .*$",
    ):
        require_distinct(("a", each) for each in [*places, BundlePlace(Path(second))])


def test_another_model_of_the_same_name_is_served_from_a_folder_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    alone, versions = write_bundle(tmp_path / "colours"), tmp_path / "other"
    write_bundle(versions / "1")
    places = places_in([alone, versions])
    models = BundleRepository(
        [served(each.name or "colours-fp32", each.version) for each in places]
    )
    assert models.versions_of("colours-fp32") == models.versions_of("other") == ["1"]


def test_a_model_that_fails_its_golden_sample_is_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with deploykit.load(write_bundle(tmp_path / "colours"), device="cpu") as model:
        assert require_golden(model, "colours") is model

        def fails() -> None:
            raise ValidationError("other logits than at export")

        monkeypatch.setattr(model, "self_test", fails)
        with pytest.raises(ValidationError, match="colours is not served: other logits"):
            require_golden(model, "colours")


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("max_batch", 0), ("max_queue", 0), ("max_in_flight", -1), ("read_timeout_s", 0),
        ("infer_timeout_s", float("nan")), ("max_header_bytes", 100), ("max_pixels", 0),
    ],
)  # fmt: skip
def test_a_limit_that_lets_nothing_through_is_refused(name: str, given: Any) -> None:
    with pytest.raises(UsageError, match=rf"{name}={given} lets nothing through\nexpected"):
        ServiceLimits(**{name: given})


class Nvml:
    """Two GPUs, as pynvml shows them."""

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(used=100 + handle, total=1000 + handle)


def test_memory_of_each_gpu_is_a_metric() -> None:
    (family,) = GpuMemory(Nvml()).collect()
    found = {(each.labels["gpu"], each.labels["kind"]): each.value for each in family.samples}
    assert found == {
        ("0", "used"): 100, ("0", "total"): 1000, ("1", "used"): 101, ("1", "total"): 1001,
    }  # fmt: skip


def test_a_failing_gpu_leaves_the_other_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Nvml):
        def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802
            raise OSError("GPU is lost")

    assert list(GpuMemory(Broken()).collect()) == []
    assert b"deploykit_in_flight_requests" in Metrics().text()


def test_outcomes_are_summed_over_models() -> None:
    metrics = Metrics()
    for model, outcome in (("a", "answered"), ("b", "answered"), ("a", "busy")):
        metrics.requests.labels(model, "1", "http", outcome).inc()
    assert metrics.outcomes() == {"answered": 2, "busy": 1}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What a tracer of OpenTelemetry's own SDK finished, in order."""
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry import propagate, trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    own = SimpleNamespace(get_tracer=provider.get_tracer, SpanKind=trace.SpanKind)
    monkeypatch.setattr("deploykit.serving.tracing.opentelemetry", lambda: (propagate, own))
    yield kept
    provider.shutdown()


def test_a_request_is_a_span_of_its_senders_trace(spans: Any) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with Tracer().request({"traceparent": parent}, {"model": "colours"}):
        pass
    (span,) = spans.get_finished_spans()
    assert span.name == "infer"
    assert f"{span.context.trace_id:032x}" == parent.split("-")[1]
    assert f"{span.parent.span_id:016x}" == parent.split("-")[2]
    assert dict(span.attributes) == {"model": "colours"}


def test_without_opentelemetry_there_are_no_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploykit.serving.tracing.opentelemetry", lambda: None)
    with Tracer().request({}, {}):
        pass
