"""The command and `import faqd` beside a user's packages that have the names of ours, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODEL = """
from torch import nn
from pipeline.config import WIDTH
import calibration.mine

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        from .layers import block
        self.body = block(WIDTH)

    def forward(self, x):
        from pipeline.data import scaled
        return self.body(scaled(x))

def build():
    return Net(), {"channels": 1, "height": 16, "mean": [0.5], "std": [0.25]}
"""
LAYERS = """
from torch import nn

def block(width):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))
"""
DATA = """
import numpy as np

def scaled(x):
    return x * 2

class Images:
    def __len__(self):
        return 40

    def __getitem__(self, index):
        from pipeline.config import WIDTH
        return np.random.default_rng(index + WIDTH).integers(0, 256, (16, 16), np.uint8)

def images():
    return Images()
"""
GUEST = """
import os
import sys
import pipeline.config
import faqd
assert not {"torch", "cyclopts", "rich"} & set(sys.modules)
assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"  # in time for torch
config = faqd.RunConfig(teacher=faqd.TeacherConfig(sources=("python:pipeline.model:absent",)),
                        data=faqd.DataConfig(source="python:pipeline.data:images"))
for wrong in (lambda: faqd.run(config), lambda: faqd.validate("nowhere"), lambda: faqd.QuantisationConfig(bits=5)):
    try:
        wrong()
    except faqd.UserError as error:
        print(error)
import pipeline.data
assert pipeline.config.WIDTH == 8 and pipeline.data.images() and "nowhere" not in pipeline.__path__
from torch import nn
import torch
model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
network = faqd.capture(model, torch.rand(2, 1, 8, 8))
images = faqd.open_images(torch.randint(256, (9, 1, 8, 8), dtype=torch.uint8), network)
artifact = faqd.convert(faqd.prepare(network, images))
assert artifact.run(images.held_out[0][None])["output"].shape == (1, 2) and "faqd-card" in artifact._repr_html_()
assert pipeline.data.images()
import threading
import time
from multiprocessing.reduction import ForkingPickler
from faqd import own_packages
started = threading.Event()
def import_slowly():
    started.set()
    import pipeline.slow
with own_packages.own():  # as in a process that decodes images: what it reads is sent by another thread
    reading = threading.Thread(target=import_slowly)
    reading.start()
    started.wait()
    time.sleep(0.1)
    assert b"RunConfig" in bytes(ForkingPickler.dumps(config))
    reading.join()
print(faqd.__version__, faqd.RunConfig.__module__, pipeline.__file__)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's folder with packages of all three names: one whole, one a file that must not run, one a bare folder."""
    files = {
        "pipeline/__init__.py": "",
        "pipeline/config.py": "WIDTH = 8",
        "pipeline/model.py": MODEL,
        "pipeline/layers.py": LAYERS,
        "pipeline/data.py": DATA,
        "backends.py": "raise SystemExit('the stranger was run')",
        "pipeline/slow.py": "import time; time.sleep(0.5)",
        "calibration/mine.py": "",
        "guest.py": GUEST,
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    return tmp_path


def python(project: Path, repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in the user's folder, whose packages come first."""
    environment = os.environ | {"PYTHONPATH": f"{project}{os.pathsep}{repository}", "COLUMNS": "100"}
    environment.pop("OMP_WAIT_POLICY", None)  # which these tests set for themselves
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_command_runs_the_users_network_on_the_users_images(project: Path, repository: Path) -> None:
    sources = ("--teacher", "python:pipeline.model:build", "--data", "python:pipeline.data:images", "--workers", "1")
    learning = ("--steps", "2", "--batch-size", "4", "--max-drop", "100")
    done = python(project, repository, "-m", "faqd", "run", *sources, *learning, "--output", "run")
    assert (project / "run" / "bundle" / "manifest.json").is_file(), done.stderr
    assert "Traceback" not in done.stderr and "exit status" in done.stdout


def test_doctor_and_mistakes_are_as_elsewhere(project: Path, repository: Path) -> None:
    assert python(project, repository, "-m", "faqd", "doctor").stdout.startswith("versions  faqd")
    done = python(project, repository, "-c", "from faqd.command import main; raise SystemExit(main(['--version']))")
    assert (done.returncode, done.stderr) == (0, "")
    done = python(project, repository, "-m", "pipeline", "--version")
    assert done.returncode == 1 and "No module named pipeline.__main__" in done.stderr  # it is the user's own


def test_faqd_is_imported_beside_a_package_that_was_there_first(project: Path, repository: Path) -> None:
    done = python(project, repository, "guest.py")
    assert done.returncode == 0, done.stderr
    absent, nowhere, bits, last = done.stdout.splitlines()
    assert "python:pipeline.model:absent: pipeline.model has no 'absent'" in absent
    assert nowhere.startswith("nowhere is no folder") and bits.startswith("--bits 5: must be 8")
    assert last.endswith(f"pipeline.config.run {project / 'pipeline' / '__init__.py'}")


def test_without_such_packages_importing_is_as_python_does_it(tmp_path: Path, repository: Path) -> None:
    code = (
        "import builtins, sys; plain = builtins.__import__; import faqd; faqd.RunConfig();"
        "assert builtins.__import__ is plain and sys.modules['pipeline'].__file__.startswith(sys.argv[1]);"
        "assert set(faqd.__all__) == set(dir(faqd)) and all(getattr(faqd, name) for name in faqd.__all__)"
    )
    done = python(tmp_path, repository, "-c", code, str(repository))
    assert (done.returncode, done.stderr) == (0, "")
