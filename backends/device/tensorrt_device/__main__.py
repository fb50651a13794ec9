"""What check.py starts in a bundle, where this lies two folders deep."""

from __future__ import annotations

import sys
from pathlib import Path

from .check import main

raise SystemExit(main(sys.argv[1:], Path(__file__).absolute().parents[2]))
