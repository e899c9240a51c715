"""The kernels compiled for the processor, for a stand-in driver."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("host.cpp")
COMPILER = "g++"
LIBRARY = "kernels.so"
VARIABLE = "NULLCUDA_KERNELS"
"""The environment variable by which the stand-in driver finds the library."""


def has_compiler() -> bool:
    return shutil.which(COMPILER) is not None


def compile_for_host(folder: Path) -> Path:
    """Compile the shared library `LIBRARY` into ``folder``, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / LIBRARY
    options = ["-std=c++17", "-O3", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    done = subprocess.run(
        [COMPILER, *options, str(SOURCE), "-o", str(library)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return library
