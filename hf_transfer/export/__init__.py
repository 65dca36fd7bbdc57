"""How a model leaves for other programs: a file in ONNX format, compared with the model itself."""
