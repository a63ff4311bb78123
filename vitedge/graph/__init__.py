"""Named arrays or anyone's ONNX file in, the canonical float graph out. No torch, no runtime."""
