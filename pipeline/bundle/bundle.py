"""The bundle: everything a device needs to run the network and to prove that it runs as it should."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from backends.device.bundle_check import records
from backends.onnx_file.serialised import DATA_SUFFIX, Serialised, files_of, read_model, size_of
from backends.onnxruntime.oldest_version import least_runtime
from calibration.errors import UserError
from calibration.plan import Plan
from pipeline.artifacts import MODEL
from pipeline.bundle.bundle_contents import BundleContents
from pipeline.bundle.golden import Golden
from pipeline.images.preprocessing import Preprocessing, preprocessing_from_fields
from pipeline.networks.outputs.meaning import Output
from pipeline.report.cards import Card, Shown
from pipeline.report.report_files import write_report
from pipeline.report.schema import Report, read_report
from pipeline.report.wording import TONES, VERDICTS, headline
from pipeline.tools.atomic import directory, remove, write_bytes, write_text

FORMAT = 3
"""1 had golden outputs of the first output only, 2 no hash of the manifest itself."""
READABLE = (2, FORMAT)
#: Files of a bundle beside the model's; the manifest vouches for all of them and, by DIGEST, for itself.
GOLDEN, MANIFEST, REPORT = "golden.npz", "manifest.json", "report.json"
#: Key of the manifest's own hash, which leaves itself out.
DIGEST = "sha256"


@dataclass(frozen=True, kw_only=True)
class Bundle(Shown):
    """A bundle that was read and whose files are what the manifest says."""

    folder: Path
    model: Serialised
    golden: Golden
    manifest: Mapping[str, Any]

    def __str__(self) -> str:
        return self._card().text()

    def __repr__(self) -> str:
        return f"<Bundle {self.folder}>"

    def _repr_html_(self) -> str:
        return self._card().html()

    def _card(self) -> Card:
        said, bits, report = self.manifest, self.manifest["bits"], self.report
        shapes = [f"{entry['name']} {entry['shape']} {entry['type']}" for entry in said["inputs"]]
        return Card(
            title=f"bundle {self.folder}",
            verdict=None if report is None else (VERDICTS[report.status], TONES[report.status]),
            facts=(
                ("network", f"{said['student']}, taught by {said['teacher']}, seed {said['seed']}"),
                ("runtime", f"{self.backend}{'' if self.target is None else f', {self.target}'}"),
                ("bits", f"weights {bits['weights']}, activations {bits['activations']}"),
                ("input", "; ".join(shapes)),
                ("outputs", ", ".join(f"{output.name} ({output.holds})" for output in self.outputs)),
                ("size", f"{size_of(self.model) / 1000:.4g} kB"),
                *(("in its run", headline(report)) for report in (report,) if report is not None),
            ),
        )

    @property
    def backend(self) -> str:
        """Name of the backend that the bundle was made for."""
        return str(self.manifest["backend"])

    @property
    def target(self) -> str | None:
        """Processor that the bundle was made for, or None where it is for no processor."""
        return self.manifest.get("target")

    def made_for(self, cpu: str) -> str:
        """What to type for a bundle of the same network for another processor."""
        teacher, bits = self.manifest["teacher"], self.manifest["bits"]["weights"]
        return (
            f"{self.folder} was made for {self.target}; make one for {cpu} with faqd run --teacher {teacher}"
            f" --bits {bits} --target {cpu} and the other flags of its run"
        )

    @property
    def session_options(self) -> dict[str, str]:
        """What must be set before the model is loaded."""
        return dict(self.manifest.get("session_options", {}))

    @property
    def preprocessing(self) -> Preprocessing:
        """What must be done to an image before the network."""
        return preprocessing_from_fields(self.manifest["preprocessing"], where=str(self.folder / MANIFEST))

    @property
    def report(self) -> Report | None:
        """What the run that made the bundle measured, where the manifest vouches for it."""
        return read_report(self.folder / REPORT) if REPORT in self.manifest["files"] else None

    @property
    def remarks(self) -> tuple[str, ...]:
        """What to say of a bundle whose manifest does not vouch for itself."""
        if self.manifest["format"] == FORMAT:
            return ()
        return (
            f"the bundle is of format {self.manifest['format']}, made before manifests were hashed: an edited"
            f" {MANIFEST} (preprocessing, plan) would not show; a new run makes one that does",
        )

    def check_counterpart(self, model: Serialised, name: str) -> None:
        """Raise UserError where the float model beside a bundle is another than that of its run."""
        expected = self.manifest.get("float_model")
        if expected is not None and expected != digest_of(model, name):
            raise UserError(
                f"{self.folder.parent / name} is not the float network of this bundle's run (SHA-256 differs): lay"
                " that one there, or remove it"
            )

    @property
    def fixed_batch(self) -> int | None:
        """The only batch size that the model takes; None where it is free."""
        size = self.manifest["inputs"][0]["shape"][0]
        return size if isinstance(size, int) else None

    @property
    def any_size(self) -> bool:
        """Whether the model takes images of any height and width."""
        return isinstance(self.manifest["inputs"][0]["shape"][2], str)

    @property
    def outputs(self) -> tuple[Output, ...]:
        """What the model's outputs hold, in the file's order, at the size of the golden inputs."""
        return tuple(
            Output(
                name=str(entry["name"]),
                holds=entry["holds"],
                axis=int(entry.get("class_axis", 1)),
                activation=entry.get("activation"),
                embedding=bool(entry.get("embedding", False)),
                negligible=float(entry.get("negligible", 0.0)),
                names=tuple(entry.get("class_names", ())),
                shape=self.golden.outputs[entry["name"]].shape[1:],
            )
            for entry in self.manifest["outputs"]
        )

    @property
    def float_outputs(self) -> tuple[Output, ...]:
        """What the outputs of the float model beside the bundle hold: of a teacher that ends in other activations."""
        return tuple(
            replace(output, activation=entry.get("float_activation", output.activation))
            for output, entry in zip(self.outputs, self.manifest["outputs"], strict=True)
        )

    @property
    def least_parity(self) -> float | None:
        """The share of answers, 0 to 1, that must be the oracle's, as its check has it; None in the first formats."""
        return self.manifest.get("least_parity")

    @property
    def plan(self) -> Plan:
        """The placement that the model was made by."""
        return Plan.from_json(self.manifest["plan"])


def write_bundle(target: Path, contents: BundleContents, *, overwrite: bool) -> None:
    """Write a complete bundle, or nothing. Raises UserError when the place is taken, full or not writable."""
    model, report = contents.model, contents.report
    files = {**files_of(model, MODEL), GOLDEN: contents.golden.to_bytes(), **contents.device_files}
    with directory(target, overwrite=overwrite) as folder:
        for name, content in files.items():
            write_bytes(folder / name, content)
        write_report(report, folder)
        written = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "backend": report.backend,
            "target": report.target,
            "session_options": dict(contents.session_options),
            "least_parity": contents.least_parity,
            **_runtime(model, report.backend),
            "bits": {"weights": report.bits.weights, "activations": report.bits.activations},
            "teacher": report.teacher,
            "student": report.student,
            "seed": report.seed,
            "quantiser": report.quantiser,
            **_tensors(model, contents.outputs, contents.float_outputs),
            "preprocessing": contents.preprocessing.to_json(),
            "versions": report.versions,
            **({} if report.run is None else {"run": report.run}),
            "files": {name: sha256(folder / name) for name in written},
            "float_model": contents.float_digest,
            "plan": contents.plan.to_json(),
        }
        manifest[DIGEST] = manifest_digest(json.loads(json.dumps(manifest)))
        write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def write_model(path: Path, model: Serialised) -> None:
    """Write a model's file, and the one beside it where its weights lie there; one of an earlier model goes."""
    files = files_of(model, path.name)
    for name in {path.name, path.name + DATA_SUFFIX} - files.keys():
        remove(path.with_name(name))
    for name, content in files.items():
        write_bytes(path.with_name(name), content)


def _tensors(
    model: Serialised, outputs: Sequence[Output], float_outputs: Sequence[Output]
) -> dict[str, list[dict[str, Any]]]:
    """Names, types, shapes of inputs and outputs, and what outputs hold; a free dimension is its name."""
    graph = onnx.load_model_from_string(model if isinstance(model, bytes) else model.graph).graph
    described: dict[str, list[dict[str, Any]]] = {}
    for word, values in (("inputs", graph.input), ("outputs", graph.output)):
        described[word] = [
            {
                "name": value.name,
                "type": onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower(),
                "shape": [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim],
            }
            for value in values
        ]
    for entry, output, plain in zip(described["outputs"], outputs, float_outputs, strict=True):
        entry.update(output.to_json())
        if plain.activation != output.activation:
            entry["float_activation"] = plain.activation
    return described


def _runtime(model: Serialised, backend: str) -> dict[str, Any]:
    """The oldest runtime that the model needs, where it is known."""
    graph = onnx.load_model_from_string(model if isinstance(model, bytes) else model.graph)
    least = least_runtime(graph, backend)
    return {} if least is None else {"runtime": least}


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle and verify every file's hash before anything in it runs.

    Raises UserError when the folder is no bundle, a file is missing or changed, or its format is unknown.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give the bundle folder that a run has written")
    if not path.is_file():
        raise UserError(f"{folder} is no bundle: it has no {MANIFEST}; a run writes one at DIR/bundle")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files = dict(manifest["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): make the bundle anew") from error
    if manifest.get("format") not in READABLE:
        raise UserError(
            f"{path} has format {manifest.get('format')!r}: this version reads {records.either(READABLE)}; make the"
            " bundle anew"
        )
    if manifest["format"] == FORMAT and manifest.get(DIGEST) != manifest_digest(manifest):
        raise UserError(f"{path} was changed after the run (its own SHA-256 differs): make the bundle anew")
    for name, expected in files.items():
        file = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts or not file.is_file():
            raise UserError(f"{folder} is incomplete: {name} is missing; make the bundle anew")
        if sha256(file) != expected:
            raise UserError(f"{file} is not what the manifest says (SHA-256 differs): make the bundle anew")
    if not {MODEL, GOLDEN} <= files.keys():
        raise UserError(f"{path} vouches for no {MODEL} and {GOLDEN}: make the bundle anew")
    # All of it was vouched for, also by who wrote it otherwise; what cannot be read is a line and not a traceback.
    with _sound(path, "inputs and outputs"):
        golden = Golden.read(folder / GOLDEN, [entry["name"] for entry in manifest["outputs"]])
        _check_inputs(golden.inputs, manifest["inputs"][0], folder / GOLDEN)
    bundle = Bundle(folder=folder, model=read_model(folder / MODEL), golden=golden, manifest=manifest)
    for part in ("plan", "preprocessing", "outputs", "float_outputs", "report", "session_options", "any_size"):
        with _sound(path, part.replace("_", " ")):
            getattr(bundle, part)
    return bundle


@contextlib.contextmanager
def _sound(path: Path, part: str) -> Iterator[None]:
    """Say in one line which part of a bundle that cannot be read is not what a run writes."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} has no sound {part} ({type(error).__name__}: {error}): make the bundle anew"
        ) from error


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """The hash of all that a manifest says, in hexadecimal, whatever its layout as text; its own hash is left out."""
    said = {key: value for key, value in manifest.items() if key != DIGEST}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def run_of(folder: Path) -> str | None:
    """Which run a bundle says that it is of; None where it does not, or cannot be read."""
    return _said(folder, "run")


def float_digest(folder: Path) -> str | None:
    """`digest_of` the float model that belongs beside a bundle, as it says; None where it does not."""
    return _said(folder, "float_model")


def _said(folder: Path, key: str) -> str | None:
    try:
        value = json.loads((folder / MANIFEST).read_bytes())[key]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return value if isinstance(value, str) else None


def digest_of(model: Serialised, name: str) -> str:
    """The hash of a model's files, in hexadecimal; NAME is that of the first."""
    total = hashlib.sha256()
    for content in files_of(model, name).values():
        total.update(content)
    return total.hexdigest()


def sha256(file: Path) -> str:
    """The hash of a file in hexadecimal, read in pieces."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _check_inputs(inputs: NDArray[np.float32], described: Mapping[str, Any], path: Path) -> None:
    """Refuse golden inputs that are not what the model takes."""
    sizes = described["shape"][1:]
    fits = inputs.ndim == 1 + len(sizes) and all(
        not isinstance(fixed, int) or size == fixed for size, fixed in zip(inputs.shape[1:], sizes, strict=True)
    )
    if inputs.dtype != np.float32 or not fits:
        raise UserError(
            f"{path}: its golden inputs are {inputs.dtype} {list(inputs.shape)}, the model takes {described['type']}"
            f" {described['shape']}: make the bundle anew"
        )
