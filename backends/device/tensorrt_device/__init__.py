"""TensorRT on the device: build, inspect, run and check, with Python 3.10, numpy and the SDK alone.

A TensorRT bundle carries a copy of this folder, so its files import each other by their place and nothing else of the
project; torch, onnx and Python bindings of CUDA are not needed. `docs/tensorrt.md` says which lines have run where.
"""
