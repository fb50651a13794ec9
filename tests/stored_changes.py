"""Changes to what is stored: every kind of damage and of forgery that a file or a folder may come with, by name.

A change is made to a copy; what reads it must refuse it in one line, whatever it is. `tests/stored_reading.py` reads.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

Reseal = Callable[[Path], None]
"""Gives a changed folder the hashes that go with it again, as a forger would."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change: what it is, and how a copy of the folder gets it."""

    name: str
    make: Callable[[Path], object]
    forged: bool = False
    """Whether all hashes fit again: then what is said is at fault, and not that it was changed."""

    def __str__(self) -> str:
        return self.name


def changes_of_file(file: str, size: int, *, cuts: int, flips: int, draw: random.Random) -> Iterator[Change]:
    """Damage to one file, whatever it holds: cut, flipped, grown, emptied, missing, or something else in its place."""
    for cut in sorted({0, 1, size - 1, *(draw.randrange(size) for _ in range(cuts))}):
        yield Change(name=f"{file}: cut to {cut} bytes", make=_of_content(file, partial(_cut, cut)))
    for place in sorted({0, size - 1, *(draw.randrange(size) for _ in range(flips))}):
        bit = 1 << draw.randrange(8)

        def flipped(old: bytes, place: int = place, bit: int = bit) -> bytes:
            return old[:place] + bytes([old[place] ^ bit]) + old[place + 1 :]

        yield Change(name=f"{file}: byte {place} changed by {bit}", make=_of_content(file, flipped))
    for name, edit in {
        "a byte more": lambda old: old + b"\n",
        "a byte before": lambda old: b" " + old,
        "twice": lambda old: old + old,
        "nothing but zeros": lambda old: bytes(len(old)),
        "UTF-16": lambda old: old.decode("latin-1").encode("utf-16"),
        "a byte order mark": lambda old: b"\xef\xbb\xbf" + old,
        "no UTF-8": lambda old: b"\xff\xfe" + old,
    }.items():
        yield Change(name=f"{file}: {name}", make=_of_content(file, edit))
    for name, put in {
        "missing": lambda path: None,
        "a folder": lambda path: path.mkdir(),
        "a pipe": os.mkfifo,
        "a link to nowhere": lambda path: path.symlink_to("absent"),
        "a link to itself": lambda path: path.symlink_to(path.name),
        "a link to a device": lambda path: path.symlink_to("/dev/zero"),
        "a link to the folder": lambda path: path.symlink_to("."),
        "far too large": _of_a_terabyte,
    }.items():
        yield Change(name=f"{file}: {name}", make=_in_place_of(file, put))


def changes_of_json(file: str, tree: Any, *, reseal: Reseal | None, most: int, draw: random.Random) -> Iterator[Change]:
    """Every field of a JSON file deleted, doubled, and of another kind or size; `most` fields of those beyond it."""
    places = list(_places(tree))
    if len(places) > most:
        places = draw.sample(places, most)
    for place in places:
        label = f"{file}: {_shown(place)}"
        yield _edited(f"{label} deleted", file, partial(_delete, place), reseal)
        for value in _OTHER_VALUES:
            yield _edited(f"{label} = {_brief(value)}", file, partial(_put, place, value), reseal)
        for text in _OTHER_TEXTS:

            def written(content: bytes, place: tuple[Any, ...] = place, text: str = text) -> bytes:
                marked = json.dumps(_put(place, "@@", json.loads(content)), indent=1)
                return marked.replace('"@@"', text).encode()

            yield Change(name=f"{label} = {text[:12]} as text", make=_of_content(file, written))
    yield _edited(f"{file}: an unknown key", file, lambda tree: tree | {"unknown": 1}, reseal)
    for key in list(tree)[:4] if isinstance(tree, dict) else ():

        def doubled(content: bytes, key: str = key) -> bytes:
            return content.replace(b"{", b"{" + json.dumps({key: 1}).encode()[1:-1] + b",", 1)

        yield Change(name=f"{file}: {key} said twice", make=_of_content(file, doubled))
    for name, text in {
        "empty list": "[]",
        "empty": "{}",
        "null": "null",
        "a number": "3",
        "a text": '"a"',
        "nested": "[" * 100_000 + "]" * 100_000,
        "nested tables": '{"a":' * 100_000 + "1" + "}" * 100_000,
        "many digits": "1" * 100_000,
    }.items():
        yield Change(name=f"{file}: {name}", make=_of_content(file, partial(_instead, text.encode())))


#: Stand where another value was, as Python has them.
_OTHER_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 10**30, 2.5, -2.5, "", "x", "\x1b[2J\n", "\ud800", "x" * 10_000,
    [], [None], [[0]], {}, {"a": {}},
)  # fmt: skip
#: The same as they stand in a file that no Python wrote.
_OTHER_TEXTS = ("NaN", "Infinity", "-Infinity", "1e999", "1" * 5000, '"\\ud800"', "[" * 2000 + "]" * 2000)


def changes_of_folder(listed: Mapping[str, str], *, reseal: Reseal) -> Iterator[Change]:
    """What lies in a bundle beside its files, and what its manifest may list: `listed` is that of the manifest."""
    for name in (
        "numpy.py", "onnxruntime.py", "torch.py", "json.py", "hashlib.py", "runpy.py", "importlib.py", "argparse.py",
        "numpy/__init__.py", "faqd_device/json.py", "faqd_device/bundle_check/numpy.py", "faqd_device.py",
        "notes.txt", ".hidden", "Model.onnx", "model.onnx.data", "MANIFEST.JSON", "sub/deep/file", "sitecustomize.py",
        "__pycache__/check.cpython-311.pyc", "faqd_device/__pycache__/__init__.cpython-311.pyc",
    ):  # fmt: skip
        yield Change(name=f"beside: {name}", make=_added(name, "raise SystemExit('run')\n"))
    yield Change(name="beside: an empty folder", make=lambda folder: (folder / "empty").mkdir())
    yield Change(name="beside: a pipe", make=lambda folder: os.mkfifo(folder / "pipe"))
    yield Change(name="beside: a link out", make=lambda folder: (folder / "out").symlink_to("/etc/hostname"))
    yield Change(name="beside: a link to a folder", make=lambda folder: (folder / "out").symlink_to("/etc"))
    yield Change(name="beside: no text", make=lambda folder: Path(os.fsdecode(bytes(folder) + b"/\xff")).touch())
    for name in (
        "../outside", "/etc/hostname", "", ".", "..", "a\x00b", "./model.onnx", "faqd_device//__init__.py",
        "faqd_device/../model.onnx", "faqd_device", "C:\\a", "a\\b", "MODEL.ONNX", "manifest.json",
        "x" * 5000, "\ud800", "\x1b[2J", "/dev/zero", "absent",
    ):  # fmt: skip

        def lists(tree: Any, name: str = name) -> Any:
            return tree | {"files": tree["files"] | {name: "0" * 64}}

        yield _edited(f"lists {name[:20]!r}", "manifest.json", lists, reseal)
    yield _edited("lists nothing", "manifest.json", lambda tree: tree | {"files": {}}, reseal)
    for name in listed:

        def unlisted(tree: Any, name: str = name) -> Any:
            return tree | {"files": {key: value for key, value in tree["files"].items() if key != name}}

        def gone(folder: Path, name: str = name, unlisted: Callable[[Any], Any] = unlisted) -> None:
            _edited("", "manifest.json", unlisted, reseal).make(folder)
            (folder / name).unlink()

        yield _edited(f"does not list {name}", "manifest.json", unlisted, reseal)
        yield Change(name=f"neither lists nor has {name}", make=gone, forged=True)
        for digest in ("", "0", "0" * 64, "x" * 64, listed[name].upper()):

            def hashed(tree: Any, name: str = name, digest: str = digest) -> Any:
                return tree | {"files": tree["files"] | {name: digest}}

            yield _edited(f"{name} has the hash {digest[:4]!r}", "manifest.json", hashed, reseal)


def _edited(name: str, file: str, edit: Callable[[Any], Any], reseal: Reseal | None) -> Change:
    """A JSON file with another content, written as before; with its hashes where they can be made again."""

    def make(folder: Path) -> None:
        path = folder / file
        tree = edit(json.loads(path.read_bytes()))
        path.unlink()
        path.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
        if reseal is not None:
            reseal(folder)

    return Change(name=name, make=make, forged=reseal is not None)


def _of_content(file: str, edit: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        path = folder / file
        old = path.read_bytes()
        path.unlink()  # copies may be links to one original
        path.write_bytes(edit(old))

    return make


def _in_place_of(file: str, put: Callable[[Path], object]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / file).unlink()
        put(folder / file)

    return make


def _of_a_terabyte(path: Path) -> None:
    """A file that takes no room, but hours to read."""
    with path.open("wb") as file:
        file.truncate(1 << 40)


def _added(name: str, content: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    return make


def _places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every field below a tree, as keys and indices; of a list its first and last item."""
    keys: list[Any] = []
    if isinstance(tree, dict):
        keys = list(tree)
    elif isinstance(tree, list) and tree:
        keys = [0] if len(tree) == 1 else [0, len(tree) - 1]
    for key in keys:
        yield (*at, key)
        yield from _places(tree[key], (*at, key))


def _copied(tree: Any) -> Any:
    return json.loads(json.dumps(tree))


def _cut(size: int, old: bytes) -> bytes:
    return old[:size]


def _instead(new: bytes, old: bytes) -> bytes:
    return new


def _delete(place: tuple[Any, ...], tree: Any) -> Any:
    changed = _copied(tree)
    del _at(changed, place[:-1])[place[-1]]
    return changed


def _put(place: tuple[Any, ...], value: Any, tree: Any) -> Any:
    changed = _copied(tree)
    _at(changed, place[:-1])[place[-1]] = value
    return changed


def _at(tree: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        tree = tree[key]
    return tree


def _shown(place: tuple[Any, ...]) -> str:
    return ".".join(map(str, place))


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 20 else f"{text[:10]}..."


def linked_copy(folder: Path, target: Path) -> Path:
    """A copy of a folder in place of what was there before, its files the very same: changes make files anew."""
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(folder, target, symlinks=True, copy_function=os.link)
    return target
