"""ONNX Runtime on CPUs, and the interpreter of graphs whose own runtime isn't installed here."""
