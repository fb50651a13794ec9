"""ONNX Runtime on CPUs, this machine's and emulated ones."""
