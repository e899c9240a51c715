"""`deploykit doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from deploykit.cli._command import Answer, Command, examples
from deploykit.cli._show import escape, progress, table

if TYPE_CHECKING:
    from rich.console import Console

    from deploykit.verbs.doctor import Diagnosis


@click.command(
    "doctor", cls=Command, epilog=examples("deploykit doctor", "deploykit doctor --json")
)
def command() -> Answer:
    """Say what works on this machine, and what the rest needs."""
    from deploykit.verbs.doctor import diagnose, diagnosis_to_plain

    with progress().step("look around"):
        diagnosis = diagnose()
    return Answer(diagnosis_to_plain(diagnosis), lambda out: _show(out, diagnosis))


def _show(out: Console, diagnosis: Diagnosis) -> None:
    machine = table(("", ""))
    machine.show_header = False
    here = diagnosis.environment
    machine.add_row("deploykit", here.deploykit)
    machine.add_row("Python", here.python)
    machine.add_row("platform", here.platform)
    machine.add_row("processor", f"{here.cpu}, {here.logical_cores} logical cores")
    if here.memory_bytes:
        machine.add_row("memory", f"{here.memory_bytes / 2**30:.1f} GiB")
    for gpu in here.gpus:
        memory = f"{gpu.memory_bytes / 2**30:.1f} GiB"
        machine.add_row(
            f"GPU cuda:{gpu.index}",
            f"{escape(gpu.name)}, compute capability {gpu.compute_capability}, {memory}",
        )
        if gpu.bus_id or gpu.uuid:
            machine.add_row("", ", ".join(filter(None, (gpu.bus_id, gpu.uuid))))
    machine.add_row("CUDA driver", here.driver or "none")
    for name, version in here.packages.items():
        machine.add_row(name, version)
    out.print(machine, "")
    rows = table(("task", "works here", "how"))
    for ability in diagnosis.abilities:
        style = None if ability.works else "yellow"
        # Not markup: an install line has brackets.
        how = escape(ability.how)
        rows.add_row(ability.task, "yes" if ability.works else "no", how, style=style)
    out.print(rows)
