"""Check a TensorRT bundle on the device where it will run; needs numpy and TensorRT's Python package only.

Every TensorRT bundle holds a copy of this file. Usage: python3 check.py [--help]. Exit status: 0 all is as it should
be, 1 a comparison failed, 2 a mistake in the input or on this device, which one line names.
"""

from __future__ import annotations

import runpy
import sys

# The package lies beside this file, which is where Python looks first.
sys.dont_write_bytecode = True
runpy.run_module("tensorrt_device", run_name="__main__", alter_sys=True)
