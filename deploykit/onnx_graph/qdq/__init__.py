"""INT8 as a property of the graph: where Q/DQ pairs go, and the graph that has them."""

from deploykit.onnx_graph.qdq.insertion import activation_scales, insert_qdq
from deploykit.onnx_graph.qdq.placement import plan_qdq
from deploykit.onnx_graph.qdq.plan import QdqPlan, QdqPolicy, QuantizedWeight, Reader

__all__ = [
    "QdqPlan",
    "QdqPolicy",
    "QuantizedWeight",
    "Reader",
    "activation_scales",
    "insert_qdq",
    "plan_qdq",
]
