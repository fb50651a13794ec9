"""TensorRT: engines ahead of time, where they run, and inside ONNX Runtime."""
