"""The embedded digits and their teacher: what is shipped, how good it is, that the scripts reproduce it."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from pipeline.images.embedded import (
    ARCHIVE_NAME,
    TEACHER_NAME,
    digits_images,
    read_embedded,
)
from pipeline.networks.architectures.digits import DigitsNetwork
from pipeline.networks.sources.digits import digits_preprocessing, load_digits
from scripts.embedded import make_digits, train_digits
from scripts.embedded.make_digits import digits_arrays, npz_bytes
from scripts.embedded.train_digits import (
    TeacherTraining,
    held_out_accuracy,
    labelled_training_digits,
    shifted,
    teacher_bytes,
    train_teacher,
)
from tests.narrow_digits import narrow

# Whoever changes a shipped file changes its hash here, knowingly.
_SHA256 = {
    ARCHIVE_NAME: "20657738951368c850edbdffb949b0fa7e850b5c47030e0daf17a4301aea02b7",
    TEACHER_NAME: "ae65dd9a04b2610ca6c2cc14aa289380df3c49d8f5a82c9dd10bec8df83a01ff",
}
_MOST_BYTES = {ARCHIVE_NAME: 100_000, TEACHER_NAME: 1_200_000}


@pytest.mark.parametrize("name", sorted(_SHA256))
def test_shipped_files_are_the_pinned_ones_and_small(name: str) -> None:
    contents = read_embedded(name)
    assert hashlib.sha256(contents).hexdigest() == _SHA256[name]
    assert len(contents) < _MOST_BYTES[name]


def test_readme_names_source_and_licence() -> None:
    readme = read_embedded("README.md").decode()
    for fact in ("Alpaydin", "Kaynak", "10.24432/C50P49", "CC BY 4.0", "scikit-learn"):
        assert fact in readme


def test_images_have_the_promised_shapes_and_no_training_labels() -> None:
    unlabelled, held_out, labels = digits_images()
    assert [array.shape for array in (unlabelled, held_out, labels)] == [
        (1347, 1, 8, 8),
        (450, 1, 8, 8),
        (450,),
    ]
    assert [array.dtype.name for array in (unlabelled, held_out, labels)] == ["uint8", "uint8", "int64"]
    assert set(labels.tolist()) == set(range(10))
    assert (unlabelled.min(), unlabelled.max()) == (0, 255)


def test_no_held_out_digit_is_also_a_training_digit() -> None:
    unlabelled, held_out, _ = digits_images()
    training = {image.tobytes() for image in unlabelled}
    assert not [image for image in held_out if image.tobytes() in training]


def test_preprocessing_holds_the_training_splits_own_statistics() -> None:
    fractions = digits_images()[0] / 255
    preprocessing = digits_preprocessing()
    assert preprocessing.mean == pytest.approx([fractions.mean()], abs=5e-5)
    assert preprocessing.std == pytest.approx([fractions.std()], abs=5e-5)


def test_archive_equals_scikit_learns_digits() -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is needed only to remake digits.npz")
    digits = datasets.load_digits()
    arrays = digits_arrays()
    unlabelled, held_out, labels = digits_images()
    counts = np.rint(arrays["images"].astype(np.float64) * 16 / 255)
    np.testing.assert_array_equal(counts[:, 0], digits.images)
    chosen = arrays["held_out"].astype(np.bool_)
    np.testing.assert_array_equal(unlabelled, arrays["images"][~chosen])
    np.testing.assert_array_equal(held_out, arrays["images"][chosen])
    np.testing.assert_array_equal(labels, digits.target[chosen])
    np.testing.assert_array_equal(labelled_training_digits()[1], digits.target[~chosen])


def test_archive_holds_nothing_that_changes_from_one_making_to_the_next() -> None:
    # Members are compared and not the archives' bytes, because another zlib may compress differently.
    with np.load(io.BytesIO(read_embedded(ARCHIVE_NAME)), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    assert list(arrays) == ["images", "labels", "held_out"]
    remade = npz_bytes(arrays)
    assert npz_bytes(arrays) == remade
    assert _members(remade) == _members(read_embedded(ARCHIVE_NAME))


def _members(archive: bytes) -> list[tuple[object, ...]]:
    with zipfile.ZipFile(io.BytesIO(archive)) as entries:
        return [
            (entry.filename, entry.date_time, entry.create_system, entry.external_attr, entries.read(entry))
            for entry in entries.infolist()
        ]


def test_make_digits_writes_the_shipped_arrays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn.datasets", reason="scikit-learn is needed only to remake digits.npz")
    file = tmp_path / ARCHIVE_NAME
    make_digits.main([str(file)])
    assert _members(file.read_bytes()) == _members(read_embedded(ARCHIVE_NAME))
    assert hashlib.sha256(file.read_bytes()).hexdigest() in capsys.readouterr().out


def test_shipped_teacher_is_ready_to_use() -> None:
    teacher = load_digits("", None)
    assert teacher.preprocessing == digits_preprocessing()
    assert not any(module.training for module in teacher.module.modules())
    assert {tensor.device.type for tensor in teacher.module.state_dict().values()} == {"cpu"}
    assert {parameter.dtype for parameter in teacher.module.parameters()} == {torch.float32}


def test_shipped_teacher_reads_held_out_digits() -> None:
    assert held_out_accuracy(load_digits("", None).module) >= 0.98


def test_training_gives_the_same_bytes_twice_and_leaves_no_global_trace() -> None:
    recipe = TeacherTraining(epochs=1)
    threads = torch.get_num_threads()
    with narrow():
        first = teacher_bytes(train_teacher(recipe))
        torch.rand(7)  # the global generator must not matter
        assert teacher_bytes(train_teacher(recipe)) == first
        assert teacher_bytes(train_teacher(TeacherTraining(epochs=1, seed=1))) != first
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_training_script_reproduces_the_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fifth of its epochs already do."""
    reproduce(tmp_path / TEACHER_NAME, capsys, "--epochs", "6")


@pytest.mark.benchmark
def test_training_script_reproduces_the_teacher_as_it_was_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reproduce(tmp_path / TEACHER_NAME, capsys)


def reproduce(file: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> None:
    # Another processor or torch rounds differently, so the bytes need not be those of the maker's machine.
    train_digits.main([str(file), *flags])
    said = capsys.readouterr().out
    assert hashlib.sha256(file.read_bytes()).hexdigest() in said
    assert float(said.split()[-1]) >= 0.98
    retrained = safetensors.torch.load_file(file)
    shipped = safetensors.torch.load(read_embedded(TEACHER_NAME))
    assert {n: (t.shape, t.dtype) for n, t in retrained.items()} == {n: (t.shape, t.dtype) for n, t in shipped.items()}


def test_impossible_training_recipes_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size"):
        TeacherTraining(batch_size=1)


def test_shifted_moves_whole_images_and_fills_with_paper() -> None:
    images = torch.zeros(64, 2, 5, 4, dtype=torch.uint8)
    images[:, 0, 2, 1] = 200
    images[:, 1, 2, 2] = 100
    moved = shifted(images, 1, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    places = [_place_of(image, 200) for image in moved[:, 0]]
    assert set(places) == {(row, column) for row in (1, 2, 3) for column in (0, 1, 2)}
    assert [_place_of(image, 100) for image in moved[:, 1]] == [(row, column + 1) for row, column in places]
    assert torch.equal(moved.sum(dim=(2, 3)), images.sum(dim=(2, 3)))
    assert torch.equal(shifted(images, 0, torch.Generator()), images)


def _place_of(image: Tensor, value: int) -> tuple[int, int]:
    ((row, column),) = (image == value).nonzero().tolist()
    return row, column


def test_network_halves_its_maps_twice_and_stays_small() -> None:
    network = DigitsNetwork().eval()
    sizes: list[int] = []
    for stage in (network.stem, network.stage1, network.stage2, network.stage3):
        stage.register_forward_hook(lambda _module, _inputs, output: sizes.append(output.shape[-1]))
    assert network(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    assert sizes == [8, 8, 4, 2]
    assert sum(parameter.numel() for parameter in network.parameters()) == 256_090


def test_network_is_captured_with_a_dynamic_batch() -> None:
    network = load_digits("", None).module
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(network, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: batch},))
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(program.module()(images), network(images))
