from __future__ import annotations

import sys
from importlib import metadata
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

import pytest

from deploykit.backends._registry import choose_compiler, loadable_compilers
from deploykit.backends.trt.compiler import load_compiler, require_gpu
from deploykit.core.environment import Gpu
from deploykit.core.errors import BuildError, MissingDependencyError, UnknownNameError

if TYPE_CHECKING:
    from deploykit.backends import Compiler

GPU = Gpu("some GPU", "9.0", 80 << 30)


class Install(Protocol):
    def __call__(self, **versions: str) -> None: ...


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Let exactly the named modules be importable, each with a version of its own."""

    def only(**versions: str) -> None:
        for name in ("tensorrt", "tensorrt_rtx"):
            module: ModuleType | None = None
            if name in versions:
                module = ModuleType(name)
                module.__dict__["__version__"] = versions[name]
            # None in sys.modules makes the import fail as for a package that is not installed.
            monkeypatch.setitem(sys.modules, name, module)

    return only


def chosen(backend: str, *gpus: Gpu) -> str | None:
    compiler = choose_compiler(backend, gpus)
    return None if compiler is None else compiler.label


def test_auto_is_tensorrt_with_a_gpu_and_rtx_without(install: Install) -> None:
    install(tensorrt="11.4.0.106", tensorrt_rtx="1.7.1.116")
    assert chosen("auto", GPU) == "tensorrt 11.4.0.106"
    assert chosen("auto") == "tensorrt-rtx 1.7.1.116"


def test_auto_is_rtx_where_tensorrt_does_not_load(install: Install) -> None:
    install(tensorrt_rtx="1.7.1.116")
    assert chosen("auto", GPU) == "tensorrt-rtx 1.7.1.116"


@pytest.mark.parametrize("gpus", [(), (GPU,)])
def test_auto_without_any_compiler_gives_the_install_lines(
    install: Install, gpus: tuple[Gpu, ...]
) -> None:
    install()
    with pytest.raises(MissingDependencyError, match="no engine compiler") as caught:
        choose_compiler("auto", gpus)
    text = str(caught.value)
    assert "pip install tensorrt-rtx-cu13" in text
    assert "pip install tensorrt cuda-core nvidia-ml-py" in text
    assert len(text.splitlines()) <= 3


def test_auto_does_not_use_tensorrt_without_a_gpu(install: Install) -> None:
    install(tensorrt="11.4.0.106")
    with pytest.raises(MissingDependencyError, match="--backend none"):
        choose_compiler("auto", ())


def test_explicit_names_and_none(install: Install) -> None:
    install(tensorrt="11.4.0.106", tensorrt_rtx="1.7.1.116")
    assert chosen("tensorrt", GPU) == "tensorrt 11.4.0.106"
    assert chosen("tensorrt-rtx", GPU) == "tensorrt-rtx 1.7.1.116"
    assert chosen("none", GPU) is None


def test_explicit_tensorrt_needs_a_gpu(install: Install) -> None:
    install(tensorrt="11.4.0.106")
    with pytest.raises(BuildError, match=r"there is none here\n.*--backend tensorrt-rtx"):
        choose_compiler("tensorrt", ())


def test_explicit_rtx_that_is_not_installed(install: Install) -> None:
    install()
    with pytest.raises(MissingDependencyError, match="pip install tensorrt-rtx-cu13"):
        choose_compiler("tensorrt-rtx", ())


def test_unknown_names_suggest_a_match() -> None:
    with pytest.raises(UnknownNameError, match="unknown compiler 'tensorrtx'") as caught:
        choose_compiler("tensorrtx", ())
    assert "tensorrt-rtx" in caught.value.matches
    with pytest.raises(UnknownNameError, match="unknown compiler 'auto'"):
        load_compiler("auto")


def test_require_gpu_gives_the_first() -> None:
    assert require_gpu((GPU, Gpu("other", "8.9", 1))) is GPU


def test_loadable_compilers_leaves_out_what_does_not_import(install: Install) -> None:
    install(tensorrt_rtx="1.7.1.116")
    found = loadable_compilers()
    assert {name: compiler.version for name, compiler in found.items()} == {
        "tensorrt-rtx": "1.7.1.116"
    }


def test_only_rtx_is_portable(install: Install) -> None:
    install(tensorrt="11.4.0.106", tensorrt_rtx="1.7.1.116")
    assert load_compiler("tensorrt-rtx").is_portable
    assert not load_compiler("tensorrt").is_portable


def test_the_version_is_that_of_the_installed_distribution(rtx: Compiler) -> None:
    assert rtx.version == metadata.version("tensorrt-rtx-cu13")
    assert len(rtx.version.split(".")) == 4


@pytest.mark.parametrize("version", ["10.11.0.33", "8.6.1", "10.3.0"])
def test_a_tensorrt_that_is_too_old(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    module = ModuleType("tensorrt")
    module.__dict__["__version__"] = version
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    with pytest.raises(MissingDependencyError) as caught:
        load_compiler("tensorrt")
    first, second = str(caught.value).splitlines()
    assert first == f"TensorRT {version} is too old: deploykit needs 10.12 or later"
    assert second == "install it: pip install tensorrt cuda-core nvidia-ml-py"


@pytest.mark.parametrize("version", ["10.12.0.36", "10.13.3.9", "11.4.0.106"])
def test_a_tensorrt_that_is_new_enough(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    module = ModuleType("tensorrt")
    module.__dict__["__version__"] = version
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    assert load_compiler("tensorrt").label == f"tensorrt {version}"
