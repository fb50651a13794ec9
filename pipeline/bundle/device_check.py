"""Check a bundle on the machine where it will run; needs Python 3.10, numpy and the bundle's runtime only.

Every bundle holds a copy of this file. Usage: python3 check.py [--help]. Exit status: 0 every output is as it should
be, 1 one is not, 2 a mistake in the input or on this device, which one line names.
"""

import importlib
import os
import runpy
import sys

if sys.version_info < (3, 10):  # noqa: UP036  # devices are older than the machines that bundles are made on
    sys.stderr.write("error: check.py needs Python 3.10 or newer; this is " + sys.version.split()[0] + "\n")
    sys.exit(2)
try:
    import numpy  # noqa: F401  # only whether it is there: all that follows needs it
except ImportError as error:
    sys.stderr.write("error: check.py needs NumPy (" + str(error).split("\n")[0] + "): pip install numpy\n")
    sys.exit(2)
# The package lies beside this file.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.dont_write_bytecode = True
check = importlib.import_module("faqd_device").CHECK  # which of the packages there it is
runpy.run_module(f"faqd_device.{check}", run_name="__main__", alter_sys=True)
