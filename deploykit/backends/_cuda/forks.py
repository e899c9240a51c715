"""Keeps a forked child away from its parent's GPU: CUDA serves the process that started it alone.

A child has copies of all Python objects, and the destructor of one that stands for memory, a
stream or an engine would call the driver, which answers with an error or never. So everything that
was alive when the process was forked stays alive in the child.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any
from weakref import WeakValueDictionary

from deploykit.core.errors import UsageError

# By identity: two objects that stand for the same address are equal, and both have to stay.
_owners: WeakValueDictionary[int, Any] = WeakValueDictionary()
_user: list[int] = []  # the process that uses the GPU


def keep_in_children(owner: Any) -> Any:
    """Return ``owner``, whose destructor calls the driver; no forked child will run it."""
    _owners[id(owner)] = owner
    return owner


def note_use() -> None:
    """Note that this process uses the GPU from now on."""
    if not _user:
        _user.append(os.getpid())


def require_own_gpu() -> None:
    """Check that the GPU was not used before this process was forked.

    Raises:
        UsageError: it was.
    """
    if _user and _user[0] != os.getpid():
        raise UsageError(
            f"process {_user[0]} used the GPU before it forked this one; CUDA cannot be used in "
            "both\nload models after the fork, in each process, or start processes by 'spawn'"
        )


def _keep_all() -> None:
    for owner in list(_owners.values()):
        # Not in a list of this module: the interpreter empties modules when it ends.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_keep_all)
