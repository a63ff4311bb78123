"""Code that TensorRT and TensorRT-RTX share: one ONNX parser and one Python API, in two packages. No runtime itself."""
