"""TensorRT-RTX: NVIDIA RTX workstations; it also builds without a GPU, and so checks graphs meant for TensorRT."""
