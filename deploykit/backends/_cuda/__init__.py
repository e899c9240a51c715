"""Memory, streams, events and graphs of one GPU, on ``cuda.core``, which has its only home here.

Nothing is imported from ``cuda.core`` before a `device.Device` is opened. Its objects are typed
here because the package carries no types that a checker finds.
"""
