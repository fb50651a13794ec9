"""What a bundle is written from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backends.onnx_file.serialised import Serialised
from calibration.plan import Plan
from pipeline.bundle.golden import Golden
from pipeline.images.preprocessing import Preprocessing
from pipeline.networks.outputs.meaning import Output
from pipeline.report.schema import Report


@dataclass(frozen=True, kw_only=True)
class BundleContents:
    """The artifact with all that a device needs to run it and to prove that it runs as it should."""

    model: Serialised
    plan: Plan
    """The placement that it was made by."""
    preprocessing: Preprocessing
    outputs: Sequence[Output]
    """What the model's outputs hold, in the file's order."""
    float_outputs: Sequence[Output]
    """The same of the float model, which may end in other activations."""
    float_digest: str
    """`digest_of` the float model that lies beside the bundle."""
    golden: Golden
    device_files: Mapping[str, bytes]
    """What the device needs beside model and golden inputs, by path below the bundle."""
    session_options: Mapping[str, str]
    """What it must set before it loads the model."""
    least_parity: float
    """The share of answers, 0 to 1, that must be the golden ones."""
    report: Report

    def __post_init__(self) -> None:
        if not 0.0 <= self.least_parity <= 1.0:
            raise ValueError(f"a share of answers is from 0 to 1, not {self.least_parity}")
        if len(self.outputs) != len(self.float_outputs):
            raise ValueError(f"{len(self.outputs)} outputs of the model, {len(self.float_outputs)} of the float model")
