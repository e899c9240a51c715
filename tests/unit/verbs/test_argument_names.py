"""Names in messages: options for the command line, arguments for programs."""

from __future__ import annotations

import ast
import re
from functools import cache
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import deploykit
from deploykit.cli import COMMANDS
from deploykit.cli import main as command_line
from deploykit.core.errors import UsageError
from deploykit.verbs.argument_names import OTHER_NAMES, in_python, with_argument_names
from tests.cli import deploykit as command

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(str(deploykit.__file__)).parent
OPTION = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]+)")
FUNCTIONS = (
    *("bench", "calibrate", "estimate", "evaluate", "export", "inspect", "package", "run_recipe"),
    *("validate", "visualize"),
)
ARGUMENTS = {name: frozenset(signature(getattr(deploykit, name)).parameters) for name in FUNCTIONS}

OTHER_PROGRAMS = frozenset({
    "cap-drop", "concurrency-range", "descriptor", "gpus", "grpc-port", "host", "http-port",
    "local-dir",
    "model-repository", "net", "profile", "read-only", "rm", "shape", "show", "tmpfs",
})  # fmt: skip
"""Of `hf`, docker, dpkg, trtexec, Triton, perf_analyzer, protoc and the packaged service."""

COMMANDS_ALONE = frozenset({
    "ab", "address", "all", "calib-table", "certificate", "chain", "compare-speed",
    "confusion", "end-timeout-s", "exclude",
    "factory-args", "graceful-timeout-s", "hardware-compatibility", "help",
    "identity", "identity-token", "issuer",
    "key", "no-grpc", "optimization-level", "overlap", "password-file", "per-class", "ray",
    "rest",
    "sensitive-layers", "sigstore", "timm", "torchvision", "work",
})  # fmt: skip
"""What no function for programs takes: a message that names one says it as it is typed."""


def texts(path: Path) -> Iterator[str]:
    """The strings of a file that are no docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value


@cache
def named_in_messages() -> frozenset[str]:
    """In every file of the package but the command line's own."""
    paths = (path for path in PACKAGE.rglob("*.py") if path.parent.name != "cli")
    return frozenset(
        name for path in paths for text in texts(path) for name in OPTION.findall(text)
    )


def of_the_command_line() -> set[str]:
    context = command_line.make_context("deploykit", ["list"])
    commands = [command_line.get_command(context, name) for name in COMMANDS]
    parameters = (each for command in commands if command for each in command.params)
    flags = (flag for each in parameters for flag in (*each.opts, *each.secondary_opts))
    return {flag.removeprefix("--") for flag in flags if flag.startswith("--")}


def test_messages_name_options_that_there_are() -> None:
    known = {*of_the_command_line(), "help", *OTHER_PROGRAMS}
    assert {name for name in named_in_messages() if name not in known} == set()


def test_an_option_in_a_message_is_an_argument_or_of_the_command_line_alone() -> None:
    every = frozenset[str]().union(*ARGUMENTS.values())
    left = {name for name in named_in_messages() if in_python(f"--{name} X", every)[:2] == "--"}
    assert left - OTHER_PROGRAMS == COMMANDS_ALONE


@pytest.mark.parametrize("function", FUNCTIONS)
def test_an_option_that_is_an_argument_is_named_as_one(function: str) -> None:
    own = ARGUMENTS[function]
    for name in named_in_messages():
        argument = OTHER_NAMES.get(name, name.replace("-", "_"))
        if argument in own:
            said = in_python(f"say --{name} X or --{name}: no", own)
            assert said == f"say {argument}=X or {argument}: no"


EXPORT = ARGUMENTS["export"]
SAID = {
    "--max-drop is 'much'\nexpected 1%": "max_drop is 'much'\nexpected 1%",
    "give --mean and --std": "give mean and std",
    "--precision auto needs --max-drop 1%": 'precision="auto" needs max_drop="1%"',
    "--calib random, or --calib PATH": 'calib="random", or calib=PATH',
    "for --int8 and --fp8 only": 'for precision="int8" and precision="fp8" only',
    "--batch 8, --height 160": "batch=8, height=160",
    "for example --batch 1,8,32": "for example batch=(1,8,32)",
    "choose another place with -o": "choose another place with output",
    "give -o FOLDER": "give output=FOLDER",
    "--gpu L4, or --gpu L40": 'gpu="L4", or gpu="L40"',
    "ask for --precision fp16": 'ask for precision="fp16"',
    "--head-output 0, or --head raw": 'head_output=0, or head="raw"',
    "later: deploykit build X --batch 8\nor --batch 8": (
        "later: deploykit build X --batch 8\nor batch=8"
    ),
    "hf download a --local-dir b": "hf download a --local-dir b",
    "--calib-table FILE": "--calib-table FILE",
    "a--data b": "a--data b",
    "engines/--data": "engines/--data",
}


@pytest.mark.parametrize("message", SAID)
def test_what_becomes_of_a_message(message: str) -> None:
    assert in_python(message, EXPORT) == SAID[message]


def test_the_error_is_the_same_one() -> None:
    @with_argument_names
    def calibrate(first: int, calib: int) -> None:
        raise UsageError(f"--data is {first}, not --calib {calib}")

    with pytest.raises(UsageError, match=r"^calib is 1, not calib=2$"):
        calibrate(1, calib=2)


def test_the_same_rule_from_both_sides() -> None:
    called = command("export", "resnet18", "--precision", "auto", "--max-drop", "much")
    assert "--max-drop is 'much'" in called.err
    with pytest.raises(UsageError, match=r"^max_drop is 'much'"):
        deploykit.export("resnet18", precision="auto", max_drop="much")
