"""INT8 and FP8 as properties of the graph: where Q/DQ pairs go, and the graph that has them."""

from deploykit.graph.qdq.equalisation import LinearGroup, Scaling, equalise, linear_groups
from deploykit.graph.qdq.fp8_placement import fp8_calibration_tensors, plan_fp8
from deploykit.graph.qdq.insertion import (
    activation_scales,
    channel_scales,
    dequantize,
    insert_qdq,
    quantize,
    scale_of,
    sqnr_db,
    weight_sqnr_db,
)
from deploykit.graph.qdq.levels import EXACT, HALF, LEVELS, NARROW, with_levels
from deploykit.graph.qdq.placement import calibration_tensors, plan_qdq
from deploykit.graph.qdq.plan import QdqPlan, QdqPolicy, QuantizedWeight, Reader
from deploykit.graph.qdq.trials import (
    SWITCHES,
    Probe,
    correct_biases,
    probe_errors,
    switchable_parts,
    trial_graph,
)

__all__ = [
    "EXACT",
    "HALF",
    "LEVELS",
    "NARROW",
    "SWITCHES",
    "LinearGroup",
    "Probe",
    "QdqPlan",
    "QdqPolicy",
    "QuantizedWeight",
    "Reader",
    "Scaling",
    "activation_scales",
    "calibration_tensors",
    "channel_scales",
    "correct_biases",
    "dequantize",
    "equalise",
    "fp8_calibration_tensors",
    "insert_qdq",
    "linear_groups",
    "plan_fp8",
    "plan_qdq",
    "probe_errors",
    "quantize",
    "scale_of",
    "sqnr_db",
    "switchable_parts",
    "trial_graph",
    "weight_sqnr_db",
    "with_levels",
]
