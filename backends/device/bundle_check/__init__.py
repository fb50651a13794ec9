"""The check that a bundle brings to its device: Python 3.10, numpy and the runtime, nothing else of the project.

A bundle carries a copy of this folder (TensorRT's of tensorrt_device beside it), so files import each other by their
place alone.
"""
