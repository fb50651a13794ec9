"""ONNX files: how ours are written, and how any is read, stored and exposed."""
