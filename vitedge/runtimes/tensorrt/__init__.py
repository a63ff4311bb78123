"""TensorRT: NVIDIA GPUs, Jetson among them. The engine is built where it runs."""
