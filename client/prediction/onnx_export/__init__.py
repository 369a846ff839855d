"""A trained model as ONNX, for programs without torch.

=================  =================================================================================================
``exact_norms``    GroupNorm as sums that other programs round as little as torch does
``graph``          the model as ONNX: logits and probabilities, its card within
``check``          whether ONNX Runtime computes what the model does
``quantisation``   weights, or weights and activations, of eight bits
``errors``         why there is no file
=================  =================================================================================================
"""
