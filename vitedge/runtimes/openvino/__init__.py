"""OpenVINO: CPUs first; GPU and NPU where its plugins find them."""
