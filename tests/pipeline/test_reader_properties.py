"""Readers of files from elsewhere: whatever the bytes are, they are read or refused by one line, at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stored_readers import CORPORA, READERS, Reader, outcome

#: Drawn per reader; a few seconds in all. `python3 -m tests.fuzz READER` takes as long as it is asked to.
EXAMPLES = 60
PATIENCE = 10


@pytest.mark.parametrize("name", READERS)
def test_sound_files_are_read(name: str, tmp_path: Path) -> None:
    assert outcome(READERS[name], READERS[name].seeds[0], tmp_path) == "read"


@pytest.mark.parametrize("name", READERS)
def test_any_bytes_are_read_or_refused(name: str, tmp_path: Path) -> None:
    hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed: pip install 'faqd[test]'")
    drawn = hypothesis.strategies
    reader = READERS[name]
    places = drawn.integers(0, 1 << 16)
    change: Callable[[bytes], bytes] = drawn.one_of(
        drawn.tuples(drawn.just(_cut), places, drawn.just(b"")),
        drawn.tuples(drawn.just(_written_over), places, drawn.binary(min_size=1, max_size=8)),
        drawn.tuples(drawn.just(_put_in), places, drawn.binary(min_size=1, max_size=64)),
        drawn.tuples(drawn.just(_taken_out), places, drawn.binary(min_size=1, max_size=64)),
    )
    damaged = drawn.builds(_changed, drawn.sampled_from(reader.seeds), drawn.lists(change, min_size=1, max_size=4))
    contents = drawn.one_of(damaged, damaged, drawn.binary(max_size=256), drawn.text(max_size=99).map(_encoded))

    def answers(content: bytes) -> None:
        _answers(reader, tmp_path, content)

    settings = hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    settings(hypothesis.given(contents)(answers))()


@pytest.mark.parametrize("file", sorted(CORPORA.glob("*/*")), ids=lambda file: f"{file.parent.name}-{file.name}")
def test_what_once_failed_is_refused(file: Path, tmp_path: Path) -> None:
    _answers(READERS[file.parent.name], tmp_path, file.read_bytes())


def _answers(reader: Reader, folder: Path, content: bytes) -> None:
    begun = time.monotonic()
    assert outcome(reader, content, folder) in ("read", "refused")
    assert time.monotonic() - begun < PATIENCE


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _changed(content: bytes, changes: list[tuple[Callable[[bytes, int, bytes], bytes], int, bytes]]) -> bytes:
    for change, place, piece in changes:
        content = change(content, place % (len(content) + 1), piece)
    return content


def _cut(content: bytes, place: int, _: bytes) -> bytes:
    return content[:place]


def _written_over(content: bytes, place: int, piece: bytes) -> bytes:
    return content[:place] + piece + content[place + len(piece) :]


def _put_in(content: bytes, place: int, piece: bytes) -> bytes:
    return content[:place] + piece + content[place:]


def _taken_out(content: bytes, place: int, piece: bytes) -> bytes:
    return content[:place] + content[place + len(piece) :]
