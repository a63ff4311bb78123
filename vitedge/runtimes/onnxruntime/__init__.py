"""ONNX Runtime on CPUs, and the interpreter of graphs that are meant for runtimes that aren't here."""
