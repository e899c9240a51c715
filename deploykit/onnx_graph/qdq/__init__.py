"""INT8 as a property of the graph: where Q/DQ pairs go, and the graph that has them."""

from deploykit.onnx_graph.qdq.bias_correction import correct_biases
from deploykit.onnx_graph.qdq.insertion import activation_scales, insert_qdq
from deploykit.onnx_graph.qdq.placement import plan_qdq
from deploykit.onnx_graph.qdq.plan import QdqPlan, QdqPolicy, QuantizedWeight, Reader
from deploykit.onnx_graph.qdq.probe import Probe, probe_errors
from deploykit.onnx_graph.qdq.switches import SWITCHES, switchable
from deploykit.onnx_graph.qdq.trial import trial_graph
from deploykit.onnx_graph.qdq.weights import sqnr_db, weight_sqnr_db

__all__ = [
    "SWITCHES",
    "Probe",
    "QdqPlan",
    "QdqPolicy",
    "QuantizedWeight",
    "Reader",
    "activation_scales",
    "correct_biases",
    "insert_qdq",
    "plan_qdq",
    "probe_errors",
    "sqnr_db",
    "switchable",
    "trial_graph",
    "weight_sqnr_db",
]
