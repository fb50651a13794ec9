"""What is mutated, and which tests must notice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Sources by pattern, and the folders and files of tests that are held against them, all from the root.

    `tests` are what pytest is called with, so that it can be told of tests to leave out as well.
    """

    sources: tuple[str, ...]
    tests: tuple[str, ...]

    def files(self) -> tuple[Path, ...]:
        """Its sources, each once and in order; every pattern must match."""
        files: dict[Path, None] = {}
        for pattern in self.sources:
            matches = sorted(
                path for path in ROOT.glob(pattern) if path.name != "__init__.py" or path.stat().st_size > 200
            )
            if not matches:
                raise FileNotFoundError(f"no source matches {pattern}")
            files.update(dict.fromkeys(matches))
        return tuple(files)


GROUPS = {
    "quantiser": Group(
        sources=("calibration/arithmetic/*.py", "calibration/grid.py", "calibration/simulation/*.py"),
        tests=("tests/calibration/arithmetic", "tests/calibration/test_grid.py", "tests/calibration/simulation"),
    ),
    "emitter": Group(
        sources=("backends/onnx_file/*.py", "backends/onnx_file/translations/*.py"),
        # Those that build no network: what a change does to a file is seen in the file.
        tests=(
            "tests/backends/onnx_file/test_files_by_hand.py",
            "tests/backends/onnx_file/test_float_maps.py",
            "tests/backends/onnx_file/test_float_translations.py",
            "tests/backends/onnx_file/test_forms_by_hand.py",
            "tests/backends/onnx_file/test_free_sizes_by_hand.py",
            "tests/backends/onnx_file/test_group_merging.py",
            "tests/backends/onnx_file/test_quantised_files.py",
            "tests/backends/onnx_file/test_refusals_by_hand.py",
            "tests/backends/onnx_file/test_runtime_refusals.py",
            "tests/backends/onnx_file/test_serialised.py",
        ),
    ),
    "oracle": Group(
        sources=("backends/oracle/*.py",),
        tests=("tests/backends/oracle", "tests/backends/operators/test_operators.py"),
    ),
    "placement": Group(
        sources=("backends/placement/*.py",),
        tests=(
            "tests/backends/placement",
            "tests/backends/tensorrt/test_placement.py",
            # Networks of torchvision take longer than all other tests together.
            "--deselect=tests/backends/placement/test_place.py::test_known_networks_run_on_integers_throughout",
        ),
    ),
    "gates": Group(
        sources=(
            "pipeline/validation/gates.py",
            "pipeline/validation/score.py",
            "pipeline/validation/evaluation.py",
            "pipeline/validation/label_tally.py",
            "pipeline/validation/teacher_judgement.py",
            "pipeline/report/gate.py",
            "pipeline/tools/confidence.py",
            "backends/device/bundle_check/same_answer.py",
            "backends/device/bundle_check/compare.py",
            "backends/device/bundle_check/value_tally.py",
        ),
        tests=(
            "tests/pipeline/validation/test_gates.py",
            "tests/pipeline/validation/test_images_decide.py",
            "tests/pipeline/validation/test_maps_of_labels.py",
            "tests/pipeline/validation/test_same_answer.py",
            "tests/pipeline/validation/test_teacher_judgement.py",
            "tests/pipeline/tools/test_confidence.py",
            "tests/backends/device/test_numbers_by_hand.py",
        ),
    ),
}
