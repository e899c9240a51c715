"""Both NVIDIA compilers behind one code path: ``tensorrt`` and ``tensorrt_rtx``.

The two modules have the same Python classes, so everything here takes the module as a value and
imports neither by name. What a file of this package never does is leave a status unread: these
classes report failure by returning ``None``, ``False`` or ``-1``.
"""
