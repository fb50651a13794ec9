"""The bundle: everything a device needs to run the network and to prove that it runs as it should."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from backends.device.bundle_check import records, stored
from backends.device.bundle_check.errors import DeviceError
from backends.device.bundle_check.manifest import (
    FORMAT,
    HASHED,
    MANIFEST,
    InputEntry,
    Manifest,
    in_one_line,
    read_manifest,
    remark,
)
from backends.device.bundle_check.same_answer import EXACT
from backends.device.bundle_check.signature import SIGNATURE, check_signature, read_key, signature_of
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
from pipeline.tools.atomic import directory, remove, write_bytes

#: Files of a bundle beside the model's and its manifest.
GOLDEN, REPORT = "golden.npz", "report.json"


@dataclass(frozen=True, kw_only=True)
class Bundle(Shown):
    """A bundle that was read and whose files are what the manifest says."""

    folder: Path
    model: Serialised
    golden: Golden
    manifest: Manifest

    def __str__(self) -> str:
        return self._card().text()

    def __repr__(self) -> str:
        return f"<Bundle {self.folder}>"

    def _repr_html_(self) -> str:
        return self._card().html()

    def _card(self) -> Card:
        said, bits, report = self.manifest, self.manifest.bits, self.report
        shapes = [f"{entry.name} {list(entry.shape)} {entry.type}" for entry in said.inputs]
        return Card(
            title=f"bundle {self.folder}",
            verdict=None if report is None else (VERDICTS[report.status], TONES[report.status]),
            facts=(
                ("network", f"{said.student}, taught by {said.teacher}, seed {said.seed}"),
                ("runtime", f"{self.backend}{'' if self.target is None else f', {self.target}'}"),
                ("bits", f"weights {bits.weights}, activations {bits.activations}"),
                ("input", "; ".join(shapes)),
                ("outputs", ", ".join(f"{output.name} ({output.holds})" for output in self.outputs)),
                ("size", f"{size_of(self.model) / 1000:.4g} kB"),
                *(("in its run", headline(report)) for report in (report,) if report is not None),
            ),
        )

    @property
    def backend(self) -> str:
        """Name of the backend that the bundle was made for."""
        return self.manifest.backend

    @property
    def target(self) -> str | None:
        """Processor that the bundle was made for, or None where it is for no processor."""
        return self.manifest.target

    def made_for(self, cpu: str) -> str:
        """What to type for a bundle of the same network for another processor."""
        teacher, bits = self.manifest.teacher, self.manifest.bits.weights
        return (
            f"{self.folder} was made for {self.target}; make one for {cpu} with faqd run --teacher {teacher}"
            f" --bits {bits} --target {cpu} and the other flags of its run"
        )

    @property
    def session_options(self) -> dict[str, str]:
        """What must be set before the model is loaded."""
        return dict(self.manifest.session_options)

    @property
    def preprocessing(self) -> Preprocessing:
        """What must be done to an image before the network."""
        return preprocessing_from_fields(self.manifest.preprocessing, where=str(self.folder / MANIFEST))

    @property
    def report(self) -> Report | None:
        """What the run that made the bundle measured, where the manifest vouches for it."""
        return read_report(self.folder / REPORT) if REPORT in self.manifest.files else None

    @property
    def remarks(self) -> tuple[str, ...]:
        """What to say of a bundle whose manifest does not vouch for itself."""
        line = remark(self.manifest)
        return () if line is None else (line,)

    def check_counterpart(self, model: Serialised, name: str) -> None:
        """Raise UserError where the float model beside a bundle is another than that of its run."""
        expected = self.manifest.float_model
        if expected is not None and expected != digest_of(model, name):
            raise UserError(
                f"{self.folder.parent / name} is not the float network of this bundle's run (SHA-256 differs): lay"
                " that one there, or remove it"
            )

    @property
    def fixed_batch(self) -> int | None:
        """The only batch size that the model takes; None where it is free."""
        size = self.manifest.inputs[0].shape[0]
        return size if isinstance(size, int) else None

    @property
    def any_size(self) -> bool:
        """Whether the model takes images of any height and width."""
        return isinstance(self.manifest.inputs[0].shape[2], str)

    @property
    def outputs(self) -> tuple[Output, ...]:
        """What the model's outputs hold, in the file's order, at the size of the golden inputs."""
        return tuple(
            Output(
                name=entry.name,
                holds=entry.holds,
                axis=entry.class_axis,
                activation=entry.activation,
                embedding=entry.embedding,
                negligible=entry.negligible,
                names=entry.class_names,
                shape=self.golden.outputs[entry.name].shape[1:],
            )
            for entry in self.manifest.outputs
        )

    @property
    def float_outputs(self) -> tuple[Output, ...]:
        """What the outputs of the float model beside the bundle hold: of a teacher that ends in other activations."""
        return tuple(
            replace(output, activation=entry.float_activation or output.activation)
            for output, entry in zip(self.outputs, self.manifest.outputs, strict=True)
        )

    @property
    def least_parity(self) -> float | None:
        """The share of answers, 0 to 1, that must be the oracle's, as its check has it; None in the first formats."""
        return self.manifest.least_parity

    @property
    def plan(self) -> Plan:
        """The placement that the model was made by."""
        return records.from_json(Plan, self.manifest.plan, where=f"{self.folder / MANIFEST}: plan")


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
            "exact": contents.least_parity == EXACT and report.parity.exact_fraction in (None, 1.0),
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
            "files": {name: stored.digest_of_file(folder / name) for name in written},
            "sizes": {name: (folder / name).stat().st_size for name in written},
            "float_model": contents.float_digest,
            "plan": contents.plan.to_json(),
        }
        write_bytes(folder / MANIFEST, stored.text_as_written(stored.sealed(manifest)))


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


def read_bundle(folder: Path, *, key: Path | None = None) -> Bundle:
    """Read a bundle and verify every file's hash before anything in it runs.

    `key`: file of the key that it is signed by. Raises UserError when the folder is no bundle, a file is missing, more
    or changed, its format is unknown, or it is signed by another key, by one where none is given, or by none.
    """
    try:
        manifest = read_manifest(folder, key=None if key is None else read_key(key))
        with in_one_line():
            golden = Golden.read(folder / GOLDEN, [output.name for output in manifest.outputs])
            _check_inputs(golden.inputs, manifest.inputs[0], folder / GOLDEN)
            bundle = Bundle(folder=folder, model=read_model(folder / MODEL), golden=golden, manifest=manifest)
            # All of it was vouched for, also by who wrote it otherwise: what is no sound part is a line as well.
            for part in ("plan", "preprocessing", "outputs", "float_outputs", "report", "any_size"):
                getattr(bundle, part)
    except DeviceError as error:
        raise UserError(str(error)) from error
    return bundle


def vouched_report(folder: Path) -> Report:
    """The report of a finished run out of its bundle, whoever signed that; of no file that its manifest does not vouch.

    Raises UserError where the bundle is not as its run wrote it.
    """
    try:
        manifest = read_manifest(folder, key=None, whoever_signed=True)
    except DeviceError as error:
        raise UserError(f"{error}; --overwrite makes it anew") from error
    if REPORT not in manifest.files:
        raise UserError(f"{folder / MANIFEST} vouches for no {REPORT}: --overwrite makes the bundle anew")
    return read_report(folder / REPORT)


def sign_bundle(folder: Path, *, key: Path, old_key: Path | None = None) -> Bundle:
    """Sign the manifest of a finished bundle with the key of a file, in place of an earlier signature; read again.

    `old_key`: file of the key that it is signed by, where that is another. Raises UserError where the bundle is not as
    its run wrote it, is signed by neither, or cannot be written.
    """
    try:
        secret = read_key(key)
        before = secret if old_key is None else read_key(old_key, flag="--old-key")
        manifest = read_manifest(folder, key=None, whoever_signed=True)
        tree, _ = stored.read_object(folder / MANIFEST)
    except (DeviceError, stored.DamagedError) as error:
        raise UserError(str(error)) from error
    if SIGNATURE not in tree and old_key is not None:
        raise UserError(f"--old-key {old_key}: {folder} is not signed, so that no old key is needed: leave it out")
    try:
        check_signature(tree, before if SIGNATURE in tree else None, folder)
    except DeviceError as error:
        other = "; where another is to take its place, with --old-key" if old_key is None else ""
        raise UserError(f"{error}{other}") from error
    if manifest.format < HASHED:
        raise UserError(f"{folder} cannot be signed: {remark(manifest)}")
    said = {name: value for name, value in tree.items() if name not in (SIGNATURE, stored.DIGEST)}
    signed = stored.sealed({**said, SIGNATURE: signature_of(said, secret)})
    write_bytes(folder / MANIFEST, stored.text_as_written(signed), flag="another bundle folder")
    return read_bundle(folder, key=key)


def run_of(folder: Path) -> str | None:
    """Which run a bundle says that it is of; None where it does not, or cannot be read."""
    return _said(folder, "run")


def float_digest(folder: Path) -> str | None:
    """`digest_of` the float model that belongs beside a bundle, as it says; None where it does not."""
    return _said(folder, "float_model")


def _said(folder: Path, key: str) -> str | None:
    try:
        value = stored.read_object(folder / MANIFEST)[0].get(key)
    except stored.DamagedError:
        return None
    return value if isinstance(value, str) else None


def digest_of(model: Serialised, name: str) -> str:
    """The hash of a model's files, in hexadecimal; NAME is that of the first."""
    total = hashlib.sha256()
    for content in files_of(model, name).values():
        total.update(content)
    return total.hexdigest()


def _check_inputs(inputs: NDArray[np.float32], described: InputEntry, path: Path) -> None:
    """Refuse golden inputs that are not what the model takes."""
    sizes = described.shape[1:]
    fits = inputs.ndim == 1 + len(sizes) and all(
        not isinstance(fixed, int) or size == fixed for size, fixed in zip(inputs.shape[1:], sizes, strict=True)
    )
    if len(sizes) != 3 or inputs.dtype != np.float32 or not fits:
        raise stored.DamagedError(
            f"{path}: its golden inputs are {inputs.dtype} {list(inputs.shape)}, the model takes {described.type}"
            f" {list(described.shape)}"
        )
