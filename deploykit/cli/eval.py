"""`deploykit eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploykit.cli import _options
from deploykit.cli._command import NOTHING_DONE, Answer, Command, examples, only_checks
from deploykit.cli._ray_options import ray_options
from deploykit.cli._show import progress, show_doubts, show_table, table
from deploykit.core.errors import UsageError, one_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from deploykit.cli._ray_options import RayCall
    from deploykit.images import LabelledData
    from deploykit.verbs.evaluate import AccuracyReport, Subjects


@click.command(
    "eval",
    cls=Command,
    epilog=examples(
        "deploykit eval engines/resnet20-fp16 --data test.npz",
        "deploykit eval engines/resnet50-fp16 --data imagenet/val --per-class --confusion 20",
        "deploykit eval engines/resnet50-int8 --data val --labels-file LOC_val_solution.csv "
        "--compare engines/resnet50-fp16",
        "deploykit eval engines/resnet50-int8 --data val --device cuda "
        "--compare engines/resnet50-fp16",
    ),
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Labelled images: a folder per class or synset, a folder with --labels-file, "
    "a CSV list, or an .npz.",
)
@click.option(
    "--labels-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Labels of a flat folder: one number or synset per line in the order of the file names, "
    "or lines of file,label, such as LOC_val_solution.csv.",
)
@click.option(
    "--classes",
    "classes_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Synsets or folder names, one per line in the order of the model's outputs.  [default: "
    "LOC_synset_mapping.txt beside the images, the bundle's own names, or sorted if all are there]",
)
@click.option(
    "--class-order",
    type=click.Choice(["natural", "text"]),
    help="How class folders are numbered (2 before 10, or after it) where nothing lists them; or "
    "the images of a --labels-file without names.",
)
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    metavar="TARGET",
    help="Bundle or .onnx to agree with.  [default: the FP32 graph that the bundle keeps]",
)
@click.option(
    "--compare",
    type=click.Path(path_type=Path),
    metavar="OTHER",
    help="Bundle or .onnx to judge this one against, image by image (McNemar's exact test).",
)
@click.option("--per-class", is_flag=True, help="Top-1 of every class, the worst first.")
@click.option(
    "--confusion",
    default=0,
    type=click.IntRange(min=0),
    metavar="N",
    help="The N most frequent wrong answers.",
)
@click.option(
    "--batch",
    default=32,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Images per run.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="With --ray: where to write what was counted, as Parquet; the same call goes on there.",
)
@_options.threshold
@_options.device
@ray_options
@_options.max_pixels
@_options.fast
def command(  # noqa: PLR0913 - one parameter per option, click's way
    *,
    bundle: Path,
    data: Path,
    labels_file: Path | None,
    classes_file: Path | None,
    class_order: str | None,
    reference: Path | None,
    compare: Path | None,
    per_class: bool,
    confusion: int,
    batch: int,
    output: Path | None,
    threshold: float | None,
    device: str,
    cluster: RayCall | None,
    max_pixels: int | None,
    fast: bool,
) -> Answer:
    """Measure a bundle's accuracy, alone and beside another model.

    Runs ONNX files on onnxruntime, where no GPU is needed; with --device cuda the engines of the
    bundles. With --compare, each model prepares the images in its own way, and the agreement is
    with OTHER. With --ray a cluster works through the images, and counts the same.
    """
    from deploykit.images import LabelledData
    from deploykit.sources.calls import require_call
    from deploykit.verbs.evaluate import Subjects, evaluate_bundle

    if output is not None and cluster is None:
        raise UsageError(f"-o {output} is for --ray\nadd that, or leave it out")
    labelled = LabelledData(data, labels_file, classes_file, class_order, max_pixels)
    if only_checks():
        require_call([], images=[data], files=[labels_file, classes_file, reference, compare])
        return NOTHING_DONE
    if cluster is not None:
        subjects = Subjects(bundle, reference, compare, device, fast, threshold=threshold)
        report = _on_ray(subjects, labelled, cluster, batch=batch, output=output)
    else:
        report = evaluate_bundle(
            bundle,
            labelled,
            reference=reference,
            compare=compare,
            batch=batch,
            fast=fast,
            device=device,
            threshold=threshold,
            progress=progress(),
        )
    tables = {}
    if per_class:
        tables["per_class"] = report.per_class()
    if confusion:
        tables["confusions"] = report.confusions(confusion)
    names = (str(bundle), None if compare is None else str(compare))
    weak = {"blind_spots": list(report.blind_spots), "doubts": list(report.doubts)}
    more = {"skipped": list(report.skipped), "notes": list(report.notes), **weak}
    ran = {"graph": report.graph, "device": report.device, "choice": report.choice}
    decided = {"threshold": report.threshold}
    answer = {"bundle": str(bundle), **ran, **decided, **report.evaluation.to_dict()}
    return Answer({**answer, **tables, **more}, lambda out: _show(out, report, names, tables))


def _show(
    out: Console,
    report: AccuracyReport,
    names: tuple[str, str | None],
    tables: Mapping[str, Sequence[dict[str, Any]]],
) -> None:
    for shown in report.evaluation.tables(names):
        show_table(out, shown)
    out.print(f"{names[0]}: {report.choice}", markup=False)
    if report.threshold is not None:
        out.print(f"a yes is a probability of {report.threshold:g} or more")
    show_doubts(out, report.blind_spots, "EVALUATION")
    show_doubts(out, report.doubts)
    for name, rows in tables.items():
        _TABLES[name](out, rows)
    for note in report.notes:
        out.print(f"note: {note}", style="yellow", markup=False)


def _on_ray(
    subjects: Subjects,
    data: LabelledData,
    cluster: RayCall,
    *,
    batch: int,
    output: Path | None,
) -> AccuracyReport:
    from deploykit.ray.predicting import ClusterChoices
    from deploykit.verbs.evaluate_on_cluster import evaluate_on_cluster

    choices = ClusterChoices(
        cluster.address, cluster.workers, subjects.device, max_pixels=data.max_pixels
    )
    return evaluate_on_cluster(
        subjects, data, choices, batch=batch, output=output, progress=progress()
    )


def _show_per_class(out: Console, found: Sequence[dict[str, Any]]) -> None:
    from deploykit.heads._accuracy import share_text

    columns = ("class", "name", "images", "right", "top-1")
    title = "by class, the worst first"
    rows = table(columns, title=title, right=("class", "images", "right"))
    for one in found:
        share = share_text(one["top1"], one["top1_interval"])
        name = _plain(one["name"] or "-")
        rows.add_row(str(one["class"]), name, str(one["count"]), str(one["right"]), share)
    out.print(rows)


def _show_confusions(out: Console, found: Sequence[dict[str, Any]]) -> None:
    columns = ("images", "of class", "taken for")
    rows = table(columns, title="most frequent wrong answers", right=("images",))
    for one in found:
        pair = (one["class"], one["name"]), (one["predicted"], one["predicted_name"])
        shown = [_plain(f"{index} {name or ''}".rstrip()) for index, name in pair]
        rows.add_row(str(one["count"]), *shown)
    out.print(rows if found else "no image was taken for another class")


def _plain(text: str) -> str:
    """Names are not rich's markup, and one line each: a class may be called by its folder."""
    from rich.markup import escape

    return escape(one_line(text))


_TABLES = {"per_class": _show_per_class, "confusions": _show_confusions}
