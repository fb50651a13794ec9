"""A network of more than 2 GB of float weights through the whole command: does it end validated, in how much memory?

    python3 -m pytest -m benchmark tests/benchmarks/test_large_network.py -s

Takes some minutes, 6 GB of disk and, without training, 13 GB of memory; FAQD_LARGE_STEPS trains it (by SGD; 25 GB).
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import faqd

if TYPE_CHECKING:
    from tests.benchmarks.conftest import Cifar, Columns, Results

pytestmark = pytest.mark.benchmark

STEPS = int(os.environ.get("FAQD_LARGE_STEPS") or 0)
_NETWORK = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 128, 3, 2, 1), nn.ReLU(), nn.Flatten()]
    layers = [nn.Linear(128 * 8 * 8, 16000), nn.ReLU(), nn.Linear(16000, 16000), nn.ReLU(), nn.Linear(16000, 11000)]
    return nn.Sequential(*stem, *layers, nn.ReLU(), nn.Linear(11000, 10)).eval()
"""

COLUMNS: Columns = {
    "steps": lambda row: row["key"]["steps"],
    "float file, GB": lambda row: f"{row['float_bytes'] / 1e9:.2f}",
    "artifact, GB": lambda row: f"{row['quantised_bytes'] / 1e9:.2f}",
    "peak memory, GB": lambda row: f"{row['peak_bytes'] / 1e9:.1f}",
    "speed-up": lambda row: f"{row['speedup']:.2f}",
    "equal to the bit": lambda row: f"{100 * row['equal']:.2f} %",
    "status": lambda row: row["status"],
    "seconds": lambda row: f"{row['seconds']:.0f}",
}


def test_large_network(cifar: Cifar, results: Results, repository: Path, tmp_path: Path) -> None:
    (tmp_path / "large_network.py").write_text(_NETWORK, encoding="utf-8")
    command = [sys.executable, "-m", "pipeline", "run", "--teacher", "python:large_network:build"]
    command += ["--image-size", "32", "--data", cifar.unlabelled, "--output", str(tmp_path / "run"), "--bits", "8"]
    command += ["--steps", str(STEPS), "--affinity", "none", "--batch-size", "16", "--optimiser", "sgd"]
    # Random weights have many ties: what is asked here is that it runs, not what it scores.
    command += ["--calibration-images", "32", "--held-out-images", "32", "--max-drop", "100"]
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    finished = subprocess.run(
        command, cwd=repository, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    report = faqd.read_bundle(tmp_path / "run" / "bundle").report
    assert report is not None
    results.add(
        {"steps": STEPS},
        float_bytes=report.size.float_bytes,
        quantised_bytes=report.size.quantised_bytes,
        peak_bytes=1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
        speedup=report.latency.speedup,
        equal=report.parity.exact_fraction,
        status=report.status,
        seconds=sum(report.seconds.values()),
    )
    results.publish("A network of more than 2 GB", COLUMNS, results.newest())
