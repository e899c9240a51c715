"""Fine-tuning of a graph of eight bits against its FP32 form, on images without labels.

torch computes the gradients here and nothing else: what is judged and written comes from the graph.
"""
