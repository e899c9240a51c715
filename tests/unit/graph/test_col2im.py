"""A Col2Im becomes a transposed convolution that adds the same numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest
import torch

from deploykit.graph import tidy
from deploykit.graph.rewrites import col2ims_to_convolutions
from tests.graphs import graph, normal, run_ort

if TYPE_CHECKING:
    import onnx

KERNELS = [
    # image, kernel, stride, padding, dilation
    ((28, 28), (3, 3), (2, 2), (1, 1), (1, 1)),  # VOLO's outlook attention: a rest of one pixel
    ((8, 6), (2, 3), (2, 3), (0, 0), (1, 1)),
    ((9, 11), (3, 2), (1, 4), (1, 0), (2, 3)),
]


def folding(columns: str, image: str = "image", kernel: str = "kernel", more: str = "") -> str:
    return f"""net ({columns} x) => (float[n,c,h,w] y) {{
        [fold] y = Col2Im {more} (x, {image}, {kernel})
    }}"""


def fold_model(
    channels: int, numbers: tuple[tuple[int, int], ...]
) -> tuple[onnx.ModelProto, tuple[int, int]]:
    image, kernel, stride, padding, dilation = (list(pair) for pair in numbers)
    blocks = [
        (image[at] + 2 * padding[at] - dilation[at] * (kernel[at] - 1) - 1) // stride[at] + 1
        for at in range(2)
    ]
    shape = channels * kernel[0] * kernel[1], blocks[0] * blocks[1]
    more = f"<strides = {stride}, pads = {padding + padding}, dilations = {dilation}>"
    text = folding(f"float[n,{shape[0]},{shape[1]}]", more=more)
    return graph(text, {"image": np.array(image), "kernel": np.array(kernel)}), shape


@pytest.mark.parametrize("numbers", KERNELS)
def test_it_adds_what_torch_adds(numbers: tuple[tuple[int, int], ...]) -> None:
    source, shape = fold_model(4, numbers)
    model = ir.from_proto(source)
    tidy(model, rename=False)
    made = ir.to_proto(model)
    assert [node.op_type for node in made.graph.node] == ["Reshape", "ConvTranspose"]
    assert made.graph.node[1].name == "fold"
    assert len(made.graph.initializer) == 2
    columns = normal(3, *shape)
    image, kernel, stride, padding, dilation = numbers
    wanted = torch.nn.functional.fold(
        torch.from_numpy(columns), image, kernel, dilation, padding, stride
    )
    found = run_ort(made, {"x": columns})["y"]
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)
    np.testing.assert_allclose(run_ort(source, {"x": columns})["y"], wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            """net (float[n,12,4] x, int64[2] image) => (float[n,c,h,w] y) {
                [fold] y = Col2Im (x, image, kernel)
            }""",
            "the sizes of its image or of its blocks are computed",
        ),
        (folding("float[n,12,4]", "long", "one"), "it makes tensors of 1 axes, not images"),
        (folding("float[n,k,4]"), "its number of channels is not known"),
    ],
)
def test_the_reason_for_one_that_stays(text: str, reason: str) -> None:
    sizes = {"kernel": [2, 2], "image": [4, 4], "long": [4], "one": [2]}
    node = text.partition("Col2Im")[2]
    kept = {
        name: np.array(sizes[name]) for name in sizes if name in node and f"] {name}" not in text
    }
    model = ir.from_proto(graph(text, kept))
    assert col2ims_to_convolutions(model) == {"fold": reason}
    assert [node.op_type for node in model.graph] == ["Col2Im"]
