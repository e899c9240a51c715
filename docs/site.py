"""The documents as a site: ``python -m docs.site FOLDER``.

The pages are README.md, docs/ and what they link to, at the paths that they have in the repository,
so that a link works in both. Reference pages are made here, of click's commands and of the
docstrings of the public names. Zensical builds all of it in strict mode and fetches nothing.
"""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

import deploykit
from deploykit.cli import COMMANDS, main

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT: Final = Path(__file__).parents[1]
LINK: Final = re.compile(r"(?<!`)\]\((?!https?:|#)([^)#\s]+)(?:#[^)]*)?\)")
"""A link to another file of the repository."""

SECTIONS: Final = {
    "Start": (
        "README.md",
        "docs/installing.md",
        "docs/targets.md",
        "docs/gpu-box.md",
        "docs/status.md",
    ),
    "Use": (
        *(f"docs/{name}.md" for name in ("export", "bytes", "precision", "finetune", "budget")),
        *(f"docs/{name}.md" for name in ("accuracy", "estimate", "visualize", "troubleshooting")),
        *("docs/python.md", "docs/loading.md", "docs/serving/README.md", "docs/package.md"),
        *("docs/ray.md", "docs/benchmarking.md", "docs/security.md"),
    ),
    "Look up": (
        *("docs/faq.md", "docs/glossary.md", "docs/commands.md"),
        *("docs/reference/commands.md", "docs/reference/python.md"),
        *("docs/alternatives.md", "engines/README.md", "calib/README.md"),
    ),
    "Networks": ("docs/routes/",),
    "Inside": ("docs/", "benchmarks/", "CONTRIBUTING.md", "CHANGELOG.md"),
    "Decisions": ("docs/decisions/",),
}
"""Pages in the order of a reader; a folder stands for its pages that no section names."""

LONGEST_LINE: Final = 80
"""Characters of a signature that stays on one line."""

DOCSTRING_SECTION: Final = re.compile(r"^(Args|Raises|Returns|Yields|Attributes):$")


def main_pages() -> list[Path]:
    """README.md and all of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def linked(pages: Iterable[Path]) -> set[Path]:
    """The pages, and every file of the repository that is reached by links from them."""
    found: set[Path] = set()
    left = list(pages)
    while left:
        page = left.pop()
        if page in found:
            continue
        found.add(page)
        if page.suffix == ".md":
            texts = LINK.findall(page.read_text(encoding="utf-8"))
            targets = ((page.parent / text).resolve() for text in texts)
            left += [target for target in targets if target.is_file() and ROOT in target.parents]
    return found


def navigation(pages: Iterable[str]) -> list[dict[str, list[str]]]:
    """Every page once, under the section that names it or its folder."""
    left = sorted(pages)
    named = {entry for entries in SECTIONS.values() for entry in entries}
    folders = sorted((entry for entry in named if entry.endswith("/")), key=len, reverse=True)

    def home(page: str) -> str:
        return page if page in named else next((f for f in folders if page.startswith(f)), page)

    nav = []
    for title, entries in SECTIONS.items():
        inside = [page for entry in entries for page in left if home(page) == entry]
        nav.append({title: inside})
    return nav


# --- reference of the commands


def commands_page() -> str:
    """Every command with its options, as click knows them."""
    parts = [
        "# Reference of the commands\n\nMade from the commands themselves; `--help` says the same."
    ]
    with click.Context(main, info_name="deploykit") as outer:
        for name in COMMANDS:
            command: click.Command = import_module(f"deploykit.cli.{name}").command
            parts.append(_command(command, click.Context(command, parent=outer, info_name=name)))
    return "\n\n".join(parts) + "\n"


def _command(command: click.Command, context: click.Context) -> str:
    usage = " ".join(command.collect_usage_pieces(context))
    records = [param.get_help_record(context) for param in command.get_params(context)]
    options = [f"| `{names}` | {_cell(text)} |" for names, text in filter(None, records)]
    examples = inspect.cleandoc((command.epilog or "").partition("Examples:")[2])
    return "\n".join(
        [
            f"## deploykit {context.info_name}\n",
            f"```text\n{context.command_path} {usage}\n```\n",
            f"{inspect.cleandoc(command.help or '')}\n",
            *("| option | |", "|---|---|", *options),
            f"\n```text\n{examples}\n```" if examples else "",
        ]
    )


def _cell(text: str) -> str:
    """Plain text as one cell of a table."""
    return re.sub(r"([|<*])", r"\\\1", " ".join(text.split()))


# --- reference of the public names


def python_page() -> str:
    """Every public name with its signature and docstring."""
    parts = [
        "# Reference of the Python functions\n\nMade from the docstrings of `import deploykit`."
    ]
    for name in deploykit.__all__:
        value = getattr(deploykit, name)
        if inspect.isclass(value):
            parts += _class(name, value)
        elif callable(value):
            parts.append(_callable(f"deploykit.{name}", value, "##"))
    return "\n\n".join(parts) + "\n"


def _class(name: str, kind: type) -> Iterator[str]:
    yield f"## deploykit.{name}\n\n{markdown_of(inspect.getdoc(kind) or '')}"
    for method, value in vars(kind).items():
        if inspect.isfunction(value) and not method.startswith("_"):
            yield _callable(f"{name}.{method}", value, "###")


def _callable(name: str, value: Any, heading: str) -> str:
    body = markdown_of(inspect.getdoc(value) or "")
    return f"{heading} {name}\n\n```python\n{signature(name, value)}\n```\n\n{body}"


class _Bare(str):
    """An annotation that is shown without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def signature(name: str, value: Any) -> str:
    """The call, with a line for each parameter where one line would be too long."""
    found = inspect.signature(value)
    parameters = [
        p.replace(annotation=_Bare(p.annotation) if isinstance(p.annotation, str) else p.annotation)
        for p in found.parameters.values()
        if p.name != "self"
    ]
    shown = found.replace(parameters=parameters, return_annotation=inspect.Signature.empty)
    line = f"{name.rpartition('.')[2]}{shown}"
    if len(line) > LONGEST_LINE:
        texts: list[str] = []
        keyword = False
        for parameter in parameters:
            if parameter.kind is parameter.KEYWORD_ONLY and not keyword:
                texts, keyword = [*texts, "*"], True
            texts.append(str(parameter))
        line = f"{name.rpartition('.')[2]}(\n    " + ",\n    ".join(texts) + ",\n)"
    returns = found.return_annotation
    return line if returns is inspect.Signature.empty else f"{line} -> {_Bare(returns)}"


def markdown_of(docstring: str) -> str:
    r"""A docstring in Google's form: its sections become lists, its doctests code.

    >>> print(markdown_of("Halve it.\n\nArgs:\n    x: a number\n        of any size."))
    Halve it.
    <BLANKLINE>
    **Args**
    <BLANKLINE>
    - `x`: a number of any size.
    """
    lines: list[str] = []
    section = code = False
    for line in docstring.splitlines():
        if code and not line.strip():
            lines.append("```")
            code = False
        if line.startswith(">>>") and not code:
            lines.append("```python")
            code = True
        if DOCSTRING_SECTION.match(line):
            lines += [f"**{line[:-1]}**", ""]
            section = True
        elif section and (item := re.match(r"    ([\w*]+): (.*)", line)):
            lines.append(f"- `{item[1]}`: {item[2]}")
        elif section and line.startswith("     "):
            lines[-1] += f" {line.strip()}"
        else:
            section = section and not line.strip()
            lines.append(line.removeprefix("    ") if not code else line)
    return "\n".join([*lines, "```"] if code else lines)


# --- building


def build(site: Path) -> None:
    """Build the site in the folder ``site``; the process ends with Zensical's code if it warns."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "pages"
        pages = copy_pages(source)
        config = Path(folder) / "zensical.toml"
        config.write_text(configuration(pages), encoding="utf-8")
        command = [sys.executable, "-m", "zensical", "build", "--strict", "-f", str(config)]
        done = subprocess.run(command, check=False)
        if done.returncode:
            sys.exit(done.returncode)
        shutil.copytree(Path(folder) / "site", site, dirs_exist_ok=True)


def copy_pages(source: Path) -> list[str]:
    """Copy and make all pages; their paths below ``source``."""
    pages = []
    for path in sorted(linked(main_pages())):
        name = path.relative_to(ROOT).as_posix()
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, source / name)
        pages += [name] * (path.suffix == ".md")
    for name, text in (("commands", commands_page()), ("python", python_page())):
        page = source / "docs" / "reference" / f"{name}.md"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text, encoding="utf-8")
        pages.append(f"docs/reference/{name}.md")
    return pages


def configuration(pages: Iterable[str]) -> str:
    """Zensical's settings; fonts and scripts of other hosts are left out."""
    nav = ",\n".join(
        f"  {{ {json.dumps(title)} = {json.dumps(inside)} }}"
        for section in navigation(pages)
        for title, inside in section.items()
    )
    return f"""[project]
site_name = "deploykit"
site_description = "From a network that takes images to a verified TensorRT engine"
docs_dir = "pages"
site_dir = "site"
use_directory_urls = false
nav = [
{nav}
]

[project.theme]
font = false
features = ["content.code.copy", "navigation.footer", "navigation.top", "toc.follow"]

[project.validation]
invalid_links = true
invalid_link_anchors = true
"""


if __name__ == "__main__":
    match sys.argv[1:]:
        case [folder]:
            build(Path(folder))
        case _:
            sys.exit("usage: python -m docs.site FOLDER")
