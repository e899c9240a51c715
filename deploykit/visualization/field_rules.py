"""Rules for receptive fields: what a call of each function of torch does to them.

A function without a rule is taken to see the whole image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.visualization.receptive_field import AxisField, MapField, Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

MAP_DIMS: Final = 4
"""Dimensions of (N, C, H, W)."""


@dataclass(frozen=True)
class Placed:
    """The field of a tensor, and which of its dimensions are rows and columns."""

    axes: tuple[int, int] | None
    field: MapField

    def keeps(self, dims: Sequence[int]) -> bool:
        """Whether an operation over ``dims`` leaves positions alone."""
        return self.axes is not None and not {*dims} & {*self.axes}

    def mapped(self, rows: AxisField, columns: AxisField) -> Placed:
        """The same dimensions, with other fields."""
        return replace(self, field=replace(self.field, rows=rows, columns=columns))

    def lost(self, reason: str) -> Placed:
        """Everything depends on the whole image from here on, for the first reason there was."""
        field = MapField(self.field.image, None, None, self.field.reason or reason)
        return Placed(None, field)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Tensors in a tensor, a tuple, a list or a dict."""
    if hasattr(value, "detach"):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_in(each)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


@dataclass(frozen=True)
class Call:
    """One call of a function of torch."""

    name: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    inputs: list[tuple[Tensor, Placed]]
    output: Tensor

    @property
    def first(self) -> Placed:
        """What is known of the first tensor that comes from the image."""
        return self.inputs[0][1]

    def given(self, place: int, name: str, default: Any = None) -> Any:
        """An argument by its place or its name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)

    def lost(self, what: str | None = None) -> Placed:
        """A result that depends on the whole image, because of ``what``."""
        return self.first.lost(what or f"{self.name} mixes positions of the map")


def placed_by(call: Call) -> Placed:
    """The field of one result; an operation without a rule is taken to see the whole image."""
    if any(placed.axes is None for _, placed in call.inputs):
        reasons = (placed for _, placed in call.inputs if placed.axes is None)
        return next(reasons)
    rule = _RULES.get(call.name)
    if rule is not None:
        return rule(call)
    return call.lost(f"{call.name} has no rule for receptive fields")


def _elementwise(call: Call) -> Placed:
    """Each position by itself; of several maps what any of them depends on."""
    from_end = []
    for tensor, placed in call.inputs:
        axes = placed.axes or (0, 0)
        from_end.append((axes[0] - tensor.ndim, axes[1] - tensor.ndim))
    if len(set(from_end)) > 1:
        return call.lost()
    rows, columns = zip(*((p.field.rows, p.field.columns) for _, p in call.inputs), strict=True)
    axes = (from_end[0][0] + call.output.ndim, from_end[0][1] + call.output.ndim)
    reason = next((p.field.reason for _, p in call.inputs if p.field.reason), None)
    field = MapField(call.first.field.image, _union(rows), _union(columns), reason)
    return Placed(axes, field)


def _union(fields: Sequence[AxisField | None]) -> AxisField:
    first, *others = (each for each in fields if each is not None)
    return first.united(*others)


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    several = tuple(int(each) for each in value)
    return (several[0], several[0]) if len(several) == 1 else (several[0], several[1])


def _axes_of(placed: Placed) -> tuple[AxisField, AxisField]:
    rows, columns = placed.field.rows, placed.field.columns
    if rows is None or columns is None:
        raise AssertionError("a field with axes has positions")
    return rows, columns


def _windowed(call: Call, windows: Sequence[Window]) -> Placed:
    placed = call.first
    if placed.axes != (2, 3):
        return call.lost()
    counts = call.output.shape[2:]
    axes = (
        axis.windowed(window, count)
        for axis, window, count in zip(_axes_of(placed), windows, counts, strict=True)
    )
    found = placed.mapped(*axes)
    return _with_reason(found, f"{call.name} covers the whole map")


def _with_reason(placed: Placed, reason: str) -> Placed:
    """``reason``, where a map of a single position depends on the whole image by it."""
    rows, columns = _axes_of(placed)
    if placed.field.reason or len(rows) * len(columns) != 1 or not placed.field.is_whole:
        return placed
    return replace(placed, field=replace(placed.field, reason=reason))


def _conv2d(call: Call) -> Placed:
    weight = call.given(1, "weight")
    if len(call.inputs) > 1 or call.output.ndim != MAP_DIMS:
        return call.lost()
    stride, dilation = (
        _pair(call.given(place, name, 1)) for place, name in ((3, "stride"), (5, "dilation"))
    )
    kernel = (int(weight.shape[2]), int(weight.shape[3]))
    padding = call.given(4, "padding", 0)
    if padding == "same":
        # torch puts the odd one behind.
        pads = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
    else:
        pads = _pair(0 if padding == "valid" else padding)
    return _windowed(call, list(map(Window, kernel, stride, pads, dilation)))


def _conv_transpose2d(call: Call) -> Placed:
    weight, placed = call.given(1, "weight"), call.first
    if placed.axes != (2, 3):
        return call.lost()
    stride, padding, dilation = (
        _pair(call.given(place, name, default))
        for place, name, default in ((3, "stride", 1), (4, "padding", 0), (7, "dilation", 1))
    )
    windows = map(Window, map(int, weight.shape[2:]), stride, padding, dilation)
    counts = call.output.shape[2:]
    axes = (
        axis.transposed(window, count)
        for axis, window, count in zip(_axes_of(placed), windows, counts, strict=True)
    )
    return placed.mapped(*axes)


def _pool(call: Call) -> Placed:
    kernel = _pair(call.given(1, "kernel_size"))
    stride = call.given(2, "stride") or kernel
    dilation = call.given(4, "dilation", 1) if "max" in call.name else 1
    pads = _pair(call.given(3, "padding", 0))
    return _windowed(call, list(map(Window, kernel, _pair(stride), pads, _pair(dilation))))


def _adaptive_pool(call: Call) -> Placed:
    placed = call.first
    if placed.axes != (2, 3):
        return call.lost()
    counts = call.output.shape[2:]
    axes = zip(_axes_of(placed), counts, strict=True)
    found = placed.mapped(*(axis.pooled_to(int(count)) for axis, count in axes))
    return _with_reason(found, f"{call.name} covers the whole map")


def _reduced(call: Call) -> Placed:
    """A mean, sum or maximum over dimensions."""
    tensor, placed = call.inputs[0]
    dims = call.given(1, "dim")
    if dims is None or placed.axes is None:
        return call.lost(f"{call.name} is over the whole map")
    over = {int(dim) % tensor.ndim for dim in ((dims,) if isinstance(dims, int) else dims)}
    kept = call.output.ndim == tensor.ndim
    axes = _axes_of(placed)
    found = [
        axis.pooled_to(1) if at in over else axis
        for axis, at in zip(axes, placed.axes, strict=True)
    ]
    if kept:
        return _with_reason(placed.mapped(*found), f"{call.name} is over the whole map")
    if over & {*placed.axes}:
        return call.lost(f"{call.name} is over the whole map")
    rows, columns = (at - sum(dim < at for dim in over) for at in placed.axes)
    return replace(placed, axes=(rows, columns))


def _cat(call: Call) -> Placed:
    placed = [each for _, each in call.inputs]
    axes = {each.axes for each in placed}
    dim = int(call.given(1, "dim", 0)) % call.output.ndim
    if len(axes) > 1 or call.first.axes is None:
        return call.lost()
    if call.first.keeps([dim]):
        return _elementwise(call)
    if len(placed) != len(list(tensors_in(call.args[0]))):
        return call.lost()  # a part that does not come from the image has no field to join
    rows, columns = zip(*map(_axes_of, placed), strict=True)
    if dim == call.first.axes[0]:
        return call.first.mapped(rows[0].joined(rows[1:]), _union(columns))
    return call.first.mapped(_union(rows), columns[0].joined(columns[1:]))


def _pad(call: Call) -> Placed:
    """``F.pad``: pairs of pads from the last dimension on."""
    tensor, placed = call.inputs[0]
    pads, mode = list(call.given(1, "pad")), call.given(2, "mode", "constant")
    if placed.axes is None or mode not in _PAD_MODES:
        return call.lost()
    found = []
    for axis, dim in zip(_axes_of(placed), placed.axes, strict=True):
        place = 2 * (tensor.ndim - 1 - dim)
        before, after = pads[place : place + 2] if place < len(pads) else (0, 0)
        inside = np.arange(-int(before), len(axis) + int(after))
        found.append(axis.taken(_PAD_MODES[mode](inside, len(axis))))
    return placed.mapped(*found)


_PAD_MODES: Final[Mapping[str, Any]] = {
    "constant": lambda at, _: at,
    "replicate": lambda at, size: np.clip(at, 0, size - 1),
    "circular": lambda at, size: at % size,
    "reflect": lambda at, size: (size - 1) - np.abs((size - 1) - np.abs(at)),
}


def _interpolate(call: Call) -> Placed:
    mode, placed = call.given(3, "mode", "nearest"), call.first
    if placed.axes != (2, 3) or mode not in _REACHES or call.given(6, "antialias", default=False):
        return call.lost()
    factors = call.given(2, "scale_factor")
    given = (None, None) if factors is None else _floats(factors)
    aligned = bool(call.given(4, "align_corners", default=False))
    counts = call.output.shape[2:]
    found = []
    for axis, count, factor in zip(_axes_of(placed), counts, given, strict=True):
        at = _source_positions(mode, len(axis), int(count), factor, aligned=aligned)
        found.append(axis.resampled(at, _REACHES[mode]))
    return placed.mapped(*found)


_REACHES: Final = {"nearest": 0, "nearest-exact": 0, "bilinear": 1, "bicubic": 2}


def _floats(value: Any) -> tuple[float, float]:
    several = tuple(value) if isinstance(value, list | tuple) else (value, value)
    return float(several[0]), float(several[1])


def _source_positions(
    mode: str, size: int, count: int, factor: float | None, *, aligned: bool
) -> Any:
    """Of each output the place in the input, as torch computes it."""
    at = np.arange(count, dtype=np.float64)
    if aligned:
        return at * ((size - 1) / (count - 1) if count > 1 else 0.0)
    ratio = size / count if factor is None else 1 / factor
    if mode == "nearest":
        return at * ratio
    if mode == "nearest-exact":
        return (at + 0.5) * ratio
    middle = (at + 0.5) * ratio - 0.5
    return np.maximum(middle, 0) if mode == "bilinear" else middle


def _moved(call: Call) -> Placed:
    """``permute`` and ``transpose``."""
    tensor, placed = call.inputs[0]
    rest = list(call.args[1:]) or list(call.kwargs.values())
    dims = list(rest[0]) if len(rest) == 1 and isinstance(rest[0], list | tuple) else rest
    dims = [int(dim) % tensor.ndim for dim in dims]
    if call.name == "transpose":
        first, second = dims
        dims = list(range(tensor.ndim))
        dims[first], dims[second] = second, first
    if placed.axes is None:
        return call.lost()
    return replace(placed, axes=(dims.index(placed.axes[0]), dims.index(placed.axes[1])))


def _reshaped(call: Call) -> Placed:
    """A view that leaves rows and columns as its last two dimensions, as a channel shuffle does."""
    tensor, placed = call.inputs[0]
    is_last = placed.axes == (tensor.ndim - 2, tensor.ndim - 1)
    if not is_last or call.output.shape[-2:] != tensor.shape[-2:]:
        single = placed.axes is not None and all(len(axis) == 1 for axis in _axes_of(placed))
        return placed.lost(placed.field.reason or "") if single else call.lost()
    return replace(placed, axes=(call.output.ndim - 2, call.output.ndim - 1))


def _over_dim(call: Call) -> Placed:
    """What works along one dimension: ``softmax``, ``chunk``, ``split``, ``cumsum``."""
    tensor, placed = call.inputs[0]
    place = 2 if call.name in {"chunk", "split"} else 1
    dim = call.given(place, "dim", 0 if place > 1 else -1)
    return placed if placed.keeps([int(dim) % tensor.ndim]) else call.lost()


def _linear(call: Call) -> Placed:
    tensor, placed = call.inputs[0]
    alone = len(call.inputs) == 1
    return placed if alone and placed.keeps([tensor.ndim - 1]) else call.lost()


def _layer_norm(call: Call) -> Placed:
    tensor, placed = call.inputs[0]
    over = range(tensor.ndim - len(call.given(1, "normalized_shape")), tensor.ndim)
    return placed if placed.keeps(list(over)) else call.lost(f"{call.name} is over the whole map")


def _indexed(call: Call) -> Placed:
    """Slices, as of every second pixel."""
    tensor, placed = call.inputs[0]
    key = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    if any(not isinstance(part, slice) and part is not Ellipsis for part in key):
        return call.lost()
    if Ellipsis in key:
        at = key.index(Ellipsis)
        gap = tensor.ndim - (len(key) - 1)
        key = (*key[:at], *[slice(None)] * gap, *key[at + 1 :])
    key = (*key, *[slice(None)] * (tensor.ndim - len(key)))
    if placed.axes is None:
        return call.lost()
    found = [
        axis.taken(np.arange(len(axis))[key[dim]])
        for axis, dim in zip(_axes_of(placed), placed.axes, strict=True)
    ]
    return placed.mapped(*found)


_ELEMENTWISE: Final = frozenset((
    "add", "iadd", "radd", "sub", "isub", "rsub", "mul", "imul", "rmul", "div", "idiv", "truediv",
    "itruediv", "rtruediv", "neg", "pow", "sqrt", "rsqrt", "exp", "log", "abs", "square", "clamp",
    "clip", "clamp_min", "clamp_max", "maximum", "minimum", "relu", "relu6", "leaky_relu", "elu",
    "selu", "celu", "gelu", "silu", "mish", "hardtanh", "hardswish", "hardsigmoid", "sigmoid",
    "tanh", "softplus", "softsign", "prelu", "threshold", "dropout", "dropout2d",
    "feature_dropout", "alpha_dropout", "batch_norm", "local_response_norm", "contiguous",
    "clone", "to", "float", "detach", "type_as", "requires_grad", "logsigmoid", "rrelu",
    "hardshrink", "softshrink", "tanhshrink", "lerp", "where",
))  # fmt: skip

_RULES: Final[Mapping[str, Callable[[Call], Placed]]] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    "conv2d": _conv2d,
    "conv_transpose2d": _conv_transpose2d,
    "max_pool2d": _pool,
    "max_pool2d_with_indices": _pool,
    "avg_pool2d": _pool,
    "adaptive_avg_pool2d": _adaptive_pool,
    "adaptive_max_pool2d": _adaptive_pool,
    "adaptive_max_pool2d_with_indices": _adaptive_pool,
    "mean": _reduced,
    "sum": _reduced,
    "amax": _reduced,
    "cat": _cat,
    "concat": _cat,
    "pad": _pad,
    "interpolate": _interpolate,
    "permute": _moved,
    "transpose": _moved,
    "view": _reshaped,
    "reshape": _reshaped,
    "flatten": _reshaped,
    "unflatten": _reshaped,
    "softmax": _over_dim,
    "log_softmax": _over_dim,
    "chunk": _over_dim,
    "split": _over_dim,
    "linear": _linear,
    "layer_norm": _layer_norm,
    "getitem": _indexed,
}
