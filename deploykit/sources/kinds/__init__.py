"""Kinds of TARGET: one file says what a target is called, and how it becomes a network.

A kind is one file of this room, or one that another package adds by an entry point in the group
``deploykit.sources.kinds``; it has its `TargetKind` as ``KIND``. The files are light: what needs
torch or a library is imported when a target is built.
"""

from deploykit.sources.kinds._kind import TargetKind, kind_for

__all__ = ["TargetKind", "kind_for"]
