"""`python3 -m tensorrt_device` in a bundle, which check.py there starts."""

from __future__ import annotations

import sys
from pathlib import Path

from .check import main

raise SystemExit(main(sys.argv[1:], Path(__file__).resolve().parent.parent))
