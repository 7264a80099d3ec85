"""ONNX graphs as torch modules with gradients."""
