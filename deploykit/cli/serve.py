"""`deploykit serve`."""

from __future__ import annotations

import logging
import sys
from dataclasses import fields
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from deploykit.cli import _options
from deploykit.cli._command import Answer, Command, end_process, examples, is_json
from deploykit.cli._show import progress, table
from deploykit.core.errors import one_line
from deploykit.core.progress import say_line
from deploykit.serving.limits import ServiceLimits

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from deploykit.bundle.sigstore import SigstoreIdentity
    from deploykit.serving.server import Ports
    from deploykit.verbs.serve import ServedBundle, ServeReport

_HELP: Final = {
    "max_batch": "Images of a batch, and of one request.  [default: the engine's largest, or 32]",
    "max_wait_ms": "Time that the oldest request waits for others.",
    "max_queue": "Images of one model that may wait; one more is refused (429).",
    "max_in_flight": "Requests that are worked on; one more is refused (429).",
    "max_request_bytes": "Bytes of a request (413).",
    "max_held_bytes": "Bytes of all requests that are worked on (429).",
    "max_header_bytes": "Bytes of a request's head.",
    "max_pixels": "Pixels of an encoded image.  [default: 256 for each that the model sees]",
    "max_connections": "Connections of HTTP, and of gRPC.",
    "read_timeout_s": "Time for a request to come (408), and for an answer to be taken.",
    "infer_timeout_s": "Time from a request's end to its answer (504).",
    "graceful_timeout_s": "Time for accepted requests after SIGTERM.",
    "end_timeout_s": "Time after that for a computation that does not end: exit code 1 then.",
    "self_test_every_s": "Age of the golden sample's last run from which readiness runs it again.",
}
_UNITS: Final = {"ms": (float, "MS"), "s": (float, "S")}


def _limits(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each limit, of which the command gets one noun: ``limits``."""

    @wraps(function)
    def command(**given: Any) -> Any:
        chosen = {each.name: given.pop(each.name) for each in fields(ServiceLimits)}
        return function(limits=ServiceLimits(**chosen), **given)

    for each in reversed(fields(ServiceLimits)):
        kind, metavar = _UNITS.get(each.name.rpartition("_")[2], (int, "N"))
        option = click.option(
            f"--{each.name.replace('_', '-')}",
            type=kind,
            metavar=metavar,
            default=each.default,
            show_default=each.default is not None,
            help=_HELP[each.name],
        )
        command = option(command)
    return command


@click.command(
    "serve",
    cls=Command,
    epilog=examples(
        "deploykit serve engines/resnet50-fp16 --device cuda",
        "deploykit serve models/resnet50 --host 0.0.0.0 --http-port 8000 --grpc-port 8001",
        "curl --data-binary @cat.jpg -H 'Content-Type: image/jpeg' \\",
        "  'http://127.0.0.1:8000/v2/models/resnet50-fp16/infer?classification=3'",
    ),
)
@click.argument(
    "bundles", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="BUNDLE..."
)
@click.option(
    "--host", default="127.0.0.1", show_default=True, metavar="NAME", help="To listen on."
)
@click.option(
    "--http-port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65535),
    metavar="N",
    help="0 is any free one.",
)
@click.option(
    "--grpc-port",
    default=8001,
    show_default=True,
    type=click.IntRange(0, 65535),
    metavar="N",
    help="0 is any free one.",
)
@click.option("--no-grpc", is_flag=True, help="Serve HTTP alone.")
@_options.best_device
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Of onnxruntime on the CPU.  [default: all cores]",
)
@_options.fast
@_options.trust
@_limits
def command(  # noqa: PLR0913 - one parameter per option
    *,
    bundles: tuple[Path, ...],
    host: str,
    http_port: int,
    grpc_port: int,
    no_grpc: bool,
    device: str,
    threads: int | None,
    fast: bool,
    trust: Path | SigstoreIdentity | None,
    limits: ServiceLimits,
) -> Answer:
    """Serve bundles by the Open Inference Protocol (KServe v2), over HTTP and gRPC.

    A BUNDLE is what an export made, or a folder of versions of one, NAME/1, NAME/2, of which the
    highest answers where a request names none. Tensors go in as JSON, as Triton's binary
    extension or as gRPC's messages, and encoded images as BYTES. Requests share batches. Nothing
    listens before every bundle is loaded and its golden sample agrees. Without an engine for this
    machine a bundle is served by onnxruntime on the CPU, and the log says so.

    /metrics is for Prometheus, /v2/health/ready for an orchestrator. SIGTERM answers what was
    accepted, refuses the rest with 503, and ends with exit code 0; with 1 where a model computes on
    after the time for that.
    """
    from deploykit.serving.server import Address
    from deploykit.verbs.serve import Loading, serve

    _log_to_stderr()
    report = serve(
        bundles,
        loading=Loading(device, threads, fast, trust),
        limits=limits,
        address=Address(host, http_port, None if no_grpc else grpc_port),
        started=lambda models, ports: _say(models, host, ports),
        give_up=partial(end_process, as_json=is_json()),
        progress=progress(),
    )
    return Answer(report.to_dict(), lambda out: _show(out, report))


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("deploykit.serving")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def _say(models: tuple[ServedBundle, ...], host: str, ports: Ports) -> None:
    for each in models:
        pixels = f"; pixels {', '.join(each.pixels.values())}" if each.pixels else ""
        alone = "" if each.gathers else "; its requests are run one by one"
        say_line(
            f"serving {one_line(each.model)}, version {each.version}, on {each.device}: "
            f"{one_line(each.choice)}{pixels}{alone}"
        )
    shown = f"[{host}]" if ":" in host else host
    grpc = "" if ports.grpc is None else f", gRPC on {shown}:{ports.grpc}"
    say_line(f"listening on http://{shown}:{ports.http}{grpc}")


def _show(out: Console, report: ServeReport) -> None:
    rows = table(("requests", "count"), right=("count",))
    for outcome, count in report.requests.items():
        rows.add_row(outcome, str(count))
    if report.requests:
        out.print(rows)
    out.print("stopped; every request that was accepted was answered or refused")
