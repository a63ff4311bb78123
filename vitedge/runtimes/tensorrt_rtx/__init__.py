"""TensorRT-RTX: NVIDIA RTX workstations; it also builds without a GPU, and so referees graphs meant for TensorRT."""
