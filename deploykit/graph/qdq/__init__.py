"""INT8 and FP8 as properties of the graph: where Q/DQ pairs go, and the graph that has them."""

from deploykit.graph.qdq.attention_places import (
    LinearSource,
    channels_of,
    find_keys,
    number_channels,
)
from deploykit.graph.qdq.blocks import (
    Block,
    biased_layers,
    blocks_of,
    constants_of,
    own_weights,
)
from deploykit.graph.qdq.equalisation import (
    LinearGroup,
    Scaling,
    equalise,
    linear_groups,
    token_groups,
)
from deploykit.graph.qdq.fp8_placement import fp8_calibration_tensors, plan_fp8
from deploykit.graph.qdq.insertion import (
    activation_scales,
    channel_scales,
    dequantize,
    insert_qdq,
    quantize,
    round_to,
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
    set_weights,
    switchable_parts,
    trial_graph,
)

__all__ = [
    "EXACT",
    "HALF",
    "LEVELS",
    "NARROW",
    "SWITCHES",
    "Block",
    "LinearGroup",
    "LinearSource",
    "Probe",
    "QdqPlan",
    "QdqPolicy",
    "QuantizedWeight",
    "Reader",
    "Scaling",
    "activation_scales",
    "biased_layers",
    "blocks_of",
    "calibration_tensors",
    "channel_scales",
    "channels_of",
    "constants_of",
    "correct_biases",
    "dequantize",
    "equalise",
    "find_keys",
    "fp8_calibration_tensors",
    "insert_qdq",
    "linear_groups",
    "number_channels",
    "own_weights",
    "plan_fp8",
    "plan_qdq",
    "probe_errors",
    "quantize",
    "round_to",
    "scale_of",
    "set_weights",
    "sqnr_db",
    "switchable_parts",
    "token_groups",
    "trial_graph",
    "weight_sqnr_db",
    "with_levels",
]
