"""Files that we have written and read again: whole, of the kind and size that they should be, vouching for themselves.

Whatever lies there instead is a `DamagedError` that names the file and what is wrong with it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: Key of a JSON file's own hash, which leaves itself out.
DIGEST = "sha256"
#: The largest JSON file that is read, bytes: a plan of 2000 layers takes 2 MB.
MOST_JSON = 64 << 20
_PIECE = 1 << 20


class DamagedError(ValueError):
    """A stored file is not what was written: which, and how that shows, in one line without the way out."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.split())))


def printable(text: str) -> str:
    """A text of foreign origin as one that no terminal obeys."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def read_whole(path: Path, *, most: int) -> bytes:
    """The bytes of a regular file, `most` of them at the most. Raises DamagedError; never waits for a pipe."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            size = _size(file.fileno(), path)
            if size > most:
                raise DamagedError(f"{path} is damaged: it has {size} bytes, and {most} at the most are written")
            content = file.read(most + 1)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if len(content) > most:
        raise DamagedError(f"{path} is damaged: it grows while it is read")
    return content


def digest_of_file(path: Path, *, size: int | None = None) -> str:
    """The SHA-256 of a regular file, in hexadecimal, read in pieces. Raises DamagedError.

    `size`: the bytes that it must have, where they are known: what is far larger is then refused unread.
    """
    total = hashlib.sha256()
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            has = _size(file.fileno(), path)
            if size is not None and has != size:
                raise DamagedError(f"{path} is not what was written: it has {has} bytes, not {size} (SHA-256 differs)")
            for piece in iter(lambda: file.read(_PIECE), b""):
                total.update(piece)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return total.hexdigest()


def _without_waiting(path: str, flags: int) -> int:
    # Without this flag, which regular files do not heed, the opening of a pipe waits for who writes into it.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _size(descriptor: int, path: Path) -> int:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise DamagedError(f"{path} is no regular file")
    return status.st_size


def _unreadable(path: Path, error: OSError | ValueError) -> DamagedError:
    if isinstance(error, DamagedError):
        return error
    if isinstance(error, FileNotFoundError):
        return DamagedError(f"{path} is missing")
    return DamagedError(f"{path} cannot be read: {error.strerror if isinstance(error, OSError) else error}")


def parse_json(content: bytes, path: Path | str) -> Any:
    """What a UTF-8 JSON text says: no key twice, no number that is none. Raises DamagedError, which names `path`."""
    try:
        return json.loads(
            content.decode("utf-8"), object_pairs_hook=_once, parse_float=_finite, parse_constant=_no_number
        )
    except RecursionError:
        raise DamagedError(f"{path} is damaged: it is nested too deep") from None
    except ValueError as error:
        raise DamagedError(f"{path} is damaged: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"it says {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return table


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)


def _no_number(text: str) -> float:
    raise ValueError(f"it says {text[:40]}, which is no finite number")


def digest_of_tree(tree: Mapping[str, Any], *, without: tuple[str, ...] = (DIGEST,)) -> str:
    """The hash of all that a JSON object says, in hexadecimal, but for these keys; the order of keys counts nothing."""
    return hashlib.sha256(said_by(tree, without=without)).hexdigest()


def said_by(tree: Mapping[str, Any], *, without: tuple[str, ...]) -> bytes:
    """All that a JSON object says but for these keys, as bytes that are the same whatever its layout."""
    return json.dumps({key: value for key, value in tree.items() if key not in without}, sort_keys=True).encode()


def text_as_written(tree: Mapping[str, Any]) -> bytes:
    """A JSON object as it is written, to the byte."""
    return (json.dumps(tree, indent=1) + "\n").encode()


def sealed(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its own hash at its end, as values that JSON has."""
    said = {key: value for key, value in tree.items() if key != DIGEST}
    plain: dict[str, Any] = json.loads(json.dumps(said, allow_nan=False))
    return {**plain, DIGEST: digest_of_tree(plain)}


def read_object(path: Path) -> tuple[dict[str, Any], bytes]:
    """A JSON file that is an object, and its bytes. Raises DamagedError where it is something else."""
    content = read_whole(path, most=MOST_JSON)
    tree = parse_json(content, path)
    if not isinstance(tree, dict):
        raise DamagedError(f"{path} is damaged: it is no JSON object")
    return tree, content


def check_seal(tree: Mapping[str, Any], content: bytes, path: Path) -> None:
    """Raise DamagedError where an object does not vouch for itself, or is not written as `text_as_written` has it."""
    if tree.get(DIGEST) != digest_of_tree(tree):
        raise DamagedError(f"{path} was changed after it was written (its own SHA-256 differs)")
    check_text(tree, content, path)


def check_text(tree: Mapping[str, Any], content: bytes, path: Path) -> None:
    """Raise DamagedError where a file is another text of what it says than `text_as_written` writes."""
    if content != text_as_written(tree):
        raise DamagedError(f"{path} was changed after it was written (its layout is another)")


def read_sealed(path: Path) -> dict[str, Any]:
    """What `text_as_written(sealed(tree))` wrote, without its hash. Raises DamagedError where it is anything else."""
    tree, content = read_object(path)
    check_seal(tree, content, path)
    del tree[DIGEST]
    return tree
