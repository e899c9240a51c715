"""What compilers and this machine say is shown as it is: brackets in it are no markup."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from deploykit.backends import Ability
from deploykit.cli import check, doctor
from deploykit.cli._show import show_engines
from deploykit.core import environment
from deploykit.verbs.check import CheckReport, EngineCheck
from deploykit.verbs.doctor import Diagnosis
from tests.bundles import engine_record

if TYPE_CHECKING:
    from collections.abc import Callable

SAYINGS = (
    "install it: pip install 'package[extra]'",
    "no reformat for [bold]conv1[/bold]",
    # It would end a style that nobody began, which raises.
    "weights of [/layer1/conv1/Conv] are subnormal",
)


def of_doctor(out: Console, said: str) -> None:
    ability = Ability("run engines", works=False, how=said)
    getattr(doctor, "_show")(out, Diagnosis(environment.describe(), (ability,)))  # noqa: B009


def of_check(out: Console, said: str) -> None:
    engine = EngineCheck("a.engine", "tensorrt", fits=False, reason=said)
    getattr(check, "_show")(out, CheckReport("folder", (), (engine,)))  # noqa: B009


def of_engine(out: Console, said: str) -> None:
    show_engines(out, (engine_record(warnings=(said,)),))


@pytest.mark.parametrize("said", SAYINGS)
@pytest.mark.parametrize("show", [of_doctor, of_check, of_engine])
def test_brackets_are_shown(show: Callable[[Console, str], None], said: str) -> None:
    out = Console(file=StringIO(), width=300)
    show(out, said)
    assert isinstance(out.file, StringIO)
    assert said in out.file.getvalue()
