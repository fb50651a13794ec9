"""The house: few entries at the top of each package, few floors of rooms, no circle of imports, no endless file."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("faqd", "pipeline", "backends", "calibration")
#: Rooms on top of each other, at most: a room is what lies at the top of a package, a folder or a file.
FLOORS = {"pipeline": 11, "backends": 6, "calibration": 5}
MOST_ENTRIES, MOST_LINES = 16, 400

#: Rooms behind the face that benchmarks enter: what they measure is a step that no call of `faqd` does alone.
BEHIND_THE_FACE = {
    "conftest": {
        "backends.base": "the type of a student's runtime",
        "faqd.settings": "the names of what `faqd.prepare` takes, out of a whole configuration",
        "pipeline.artifacts": "types of what single steps of training take",
        "pipeline.distillation": "the schedule that a run would train by",
        "pipeline.images": "the type of the images that single steps of training take",
        "pipeline.setup": "machine and versions, which every row is kept with",
        "pipeline.stages": "the targets that `faqd.distil` learns, before it does",
    },
    "test_affinity_ablation": {
        "pipeline.distillation": "training over another schedule than a run's",
        "pipeline.stages": "one student taught, and what it is to learn",
        "pipeline.tools": "lines of a progress that goes to the test's output",
    },
    "test_affinity_cost": {"pipeline.distillation": "one form of a loss at a time"},
    "test_cifar_figures": {
        "backends": "the runtime's own names of its kernels",
        "pipeline.networks": "how many layers a network has, which its report must show",
    },
    "test_corrections": {
        "backends": "profiles that a student is prepared for",
        "calibration.simulation": "a student without corrections, which `faqd.prepare` does not make",
        "pipeline.artifacts": "its type",
        "pipeline.stages": "calibration and corrections, one after the other",
    },
    "test_latency_against_peers": {
        "backends.base": "types of runtimes and of what they run",
        "backends.onnx_file": "files in one piece, which peers read",
        "backends.timing": "interleaved times of several models",
        "pipeline.stages": "a file of a student that has not been trained",
    },
    "test_methods_floor": {
        "backends.onnx_file": "the float file, which peers quantise",
        "calibration.graph": "which layers are first and last",
    },
    "test_openvino_profiles": {
        "backends.base": "types of runtimes and of what they run",
        "backends.facts": "profiles, one runtime's run by another",
        "backends.onnx_file": "the float file of a network that takes no images",
        "backends.onnxruntime": "a runtime with another's profile",
        "backends.openvino": "a runtime with another's profile",
        "backends.timing": "interleaved times of several models",
        "pipeline.networks": "an untrained network",
    },
    "test_rounding_speed": {"calibration.arithmetic": "one rounding at a time"},
    "test_stored_files": {
        "backends.device": "the checks that bundles bring along, in this process",
        "pipeline.cli": "the commands, by which changed files are read",
        "pipeline.run": "its stages, of which one reader needs those that read",
    },
    "test_step_cost": {
        "pipeline.distillation": "the parts of one step of training",
        "pipeline.images": "one batch as training reads it",
        "pipeline.tools": "targets drawn as a run draws, memory as a run keeps it",
    },
    "test_zoo_latency": {
        "backends.base": "types of runtimes and of what they run",
        "backends.facts": "the profile of the processor here",
        "backends.onnx_file": "the float file of a network that takes no images",
        "backends.onnxruntime": "the runtime, of what takes no images",
        "backends.timing": "interleaved times of several models",
        "calibration.graph": "which layers are weighted",
        "pipeline.setup": "the machine, which the table names",
    },
}

Imports = Mapping[str, frozenset[str]]


def modules(root: Path) -> dict[str, Path]:
    """Every module of the packages below a folder by its dotted name."""
    paths = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return paths


def imports(root: Path) -> Imports:
    """What each module imports of the packages, wherever in it: deferred imports and those for types count.

    An import of a sub-module counts for it alone, not for the packages around it.
    """
    known = modules(root)
    return {name: frozenset(_imported(name, path, known)) - {name} for name, path in known.items()}


def _imported(name: str, path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        targets = list[str]()
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            targets = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names]
        for target in targets:
            while target and target not in known:
                target = target.rpartition(".")[0]
            if target:
                yield target


def rooms(package: str, edges: Imports) -> Imports:
    """What each room of a package imports of its others."""
    neighbours: dict[str, set[str]] = {}
    for name, targets in edges.items():
        if name.startswith(f"{package}."):
            room = name.split(".")[1]
            others = {target.split(".")[1] for target in targets if target.startswith(f"{package}.")}
            neighbours.setdefault(room, set()).update(others - {room})
    return {room: frozenset(others) for room, others in neighbours.items()}


def floors(edges: Imports) -> int:
    """The longest chain of imports; ValueError, which shows it, for a circle."""
    heights: dict[str, int] = {}

    def height(name: str, above: tuple[str, ...]) -> int:
        if name in above:
            raise ValueError(" -> ".join([*above[above.index(name) :], name]))
        if name not in heights:
            targets = [target for target in sorted(edges[name]) if target in edges]
            heights[name] = 1 + max((height(target, (*above, name)) for target in targets), default=0)
        return heights[name]

    return max(height(name, ()) for name in edges)


@pytest.fixture(scope="module")
def edges() -> Imports:
    return imports(ROOT)


def test_modules_import_in_no_circle(edges: Imports) -> None:
    assert floors(edges) > 20  # from `faqd` down to the numerics


@pytest.mark.parametrize("package", FLOORS)
def test_rooms_stand_on_few_floors(package: str, edges: Imports) -> None:
    assert floors(rooms(package, edges)) <= FLOORS[package]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_has_few_entries_at_its_top(package: str) -> None:
    entries = [path.name for path in (ROOT / package).iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MOST_ENTRIES, sorted(entries)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_is_endless(package: str) -> None:
    lines = {path: len(path.read_text().splitlines()) for path in (ROOT / package).rglob("*.py")}
    assert not {str(path.relative_to(ROOT)): count for path, count in lines.items() if count > MOST_LINES}


#: Names that stand for one thing told in several places: the public face, the command line and what does the work;
#: programs that devices run without our packages; a function that each runtime's table or each program has.
SAME_THING = {
    "capture", "compare", "convert", "distil", "load_network", "open_images", "prepare", "read_bundle", "run",
    "validate", "write_bundle",
    "check", "cosine_similarity", "host_profile", "load", "main", "normalised", "to_channels",
}  # fmt: skip


def test_one_name_is_one_thing() -> None:
    defined: dict[str, set[str]] = {}
    for name, path in modules(ROOT).items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                defined.setdefault(node.name, set()).add(name)
    twice = {name: sorted(places) for name, places in defined.items() if len(places) > 1}
    assert {name: places for name, places in twice.items() if name not in SAME_THING} == {}
    assert twice.keys() >= SAME_THING, "a name that is single again leaves the list"


#: Names of files that stand for one role in each of their folders.
SAME_ROLE = {
    "__init__": "what a folder is for",
    "__main__": "what `python -m` runs",
    "backend": "a runtime's `Backend`, in the folder of its name",
    "digits": "the embedded network, as architecture and as source",
    "errors": "what ends a program in one line: of the packages, and of what runs without them",
    "table": "the rows of its folder, to which one is added for what is new",
}
#: Folders whose files are named after what they are about, which has a file of its own elsewhere: a section of the
#: configuration after what it configures; what devices run without our packages after what it does again there.
NAMED_AFTER_ANOTHER = ("pipeline/config/", "backends/device/")


def same_names(root: Path) -> dict[str, set[str]]:
    """Files of one name in unlike roles, by that name."""
    files: dict[str, set[str]] = {}
    for path in modules(root).values():
        file = path.relative_to(root).as_posix()
        if path.stem not in SAME_ROLE and not file.startswith(NAMED_AFTER_ANOTHER):
            files.setdefault(path.stem, set()).add(file)
    return {name: places for name, places in files.items() if len(places) > 1}


def test_one_name_is_one_file() -> None:
    assert same_names(ROOT) == {}
    stems = [path.stem for path in modules(ROOT).values()]
    assert all(stems.count(name) > 1 for name in SAME_ROLE), "a name that is single again leaves the list"


def test_which_files_have_one_name(tmp_path: Path) -> None:
    for file in ("faqd/a.py", "pipeline/b/a.py", "pipeline/config/a.py", "backends/c/table.py", "faqd/table.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("")
    assert same_names(tmp_path) == {"a": {"faqd/a.py", "pipeline/b/a.py"}}


#: A record that is checked at birth is one argument; only what a user types in one line may be more.
MOST_ARGUMENTS = 7
KEYWORDS_OF_THE_FACE = {"faqd.chain.capture", "faqd.chain.distil", "faqd.chain.load_network"}


def arguments(root: Path) -> dict[str, int]:
    """How many arguments each function takes, without `self` and `cls`; a method by its class."""
    counts: dict[str, int] = {}

    def count(node: ast.AST, name: str) -> None:
        for child in ast.iter_child_nodes(node):
            own = name
            if isinstance(child, ast.ClassDef):
                own = f"{name}.{child.name}"
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                own = f"{name}.{'lambda' if isinstance(child, ast.Lambda) else child.name}"
                taken = child.args
                every = [*taken.posonlyargs, *taken.args, *taken.kwonlyargs, taken.vararg, taken.kwarg]
                names = [each.arg for each in every if each is not None and each.arg not in ("self", "cls")]
                counts[own] = max(counts.get(own, 0), len(names))
            count(child, own)

    for name, path in modules(root).items():
        count(ast.parse(path.read_text()), name)
    return counts


def test_arguments_are_few_but_for_what_users_type() -> None:
    counts = arguments(ROOT)
    assert {name for name, count in counts.items() if count > MOST_ARGUMENTS} == KEYWORDS_OF_THE_FACE


def test_what_arguments_are(tmp_path: Path) -> None:
    (tmp_path / "faqd").mkdir()
    (tmp_path / "faqd/a.py").write_text(
        "def one(a, /, b, *c, d=1, **e):\n    def inner(x): return lambda y, z: x\n"
        "class Two:\n    def three(self, a): ...\n    @staticmethod\n    def four(a, b): ...\n"
        "    if True:\n        def five(self, a, b, c): ...\n"
    )
    assert arguments(tmp_path) == {
        "faqd.a.one": 5,
        "faqd.a.one.inner": 1,
        "faqd.a.one.inner.lambda": 2,
        "faqd.a.Two.three": 1,
        "faqd.a.Two.four": 2,
        "faqd.a.Two.five": 3,
    }


def private_rooms(path: Path) -> set[str]:
    """The rooms behind the face, as package.room or a package itself, that a file imports from."""
    entered = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        entered |= {
            ".".join(name.split(".")[:2]) for name in names if name.split(".")[0] in PACKAGES and name != "faqd"
        }
    return entered


def test_benchmarks_stay_before_the_face_but_for_reasons() -> None:
    entered = {path.stem: private_rooms(path) for path in sorted((ROOT / "tests" / "benchmarks").glob("*.py"))}
    assert {name: rooms for name, rooms in entered.items() if rooms} == {
        name: set(reasons) for name, reasons in BEHIND_THE_FACE.items()
    }
    assert all(reason for reasons in BEHIND_THE_FACE.values() for reason in reasons.values())


def test_what_stays_before_the_face(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "import faqd\nfrom tests.chain import steps_of\nimport backends\n"
        "def late():\n    from pipeline.config.run import RunConfig\n    import calibration.grid as grid\n"
    )
    assert private_rooms(tmp_path / "a.py") == {"backends", "pipeline.config", "calibration.grid"}


def test_what_is_counted(tmp_path: Path) -> None:
    """Deferred and relative imports, and those for types, are; a chain of three has three floors."""
    written = {
        "pipeline/__init__.py": "",
        "pipeline/top.py": "def late():\n    from pipeline.middle import part\n",
        "pipeline/middle/__init__.py": "",
        "pipeline/middle/part.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..low import thing\n",
        "pipeline/low.py": "import json\n",
    }
    for name, text in written.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    imported = imports(tmp_path)
    assert imported["pipeline.top"] == {"pipeline.middle.part"} and imported["pipeline.middle.part"] == {"pipeline.low"}
    assert floors(imported) == floors(rooms("pipeline", imported)) == 3
    (tmp_path / "pipeline/low.py").write_text("def back():\n    import pipeline.top\n")
    with pytest.raises(ValueError, match=r"pipeline\.low -> pipeline\.top -> pipeline\.middle\.part -> pipeline\.low"):
        floors(imports(tmp_path))
