"""Coverage-guided fuzzing of one reader of `tests/stored_readers.py`, for as long as one likes.

    pip install atheris
    python3 -m tests.fuzz checkpoint --seconds 3600 --corpus /tmp/corpora

Bytes that open new ways through our code and the libraries in Python below it are kept in CORPUS/READER, which a later
run goes on from. The first bytes that neither are read nor refused, or take more than ten seconds, or 4 GB, end it with
a traceback and a file in CORPUS/READER.failed: mend what they show, then keep the file in tests/corpora/READER.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OURS = ("faqd", "pipeline", "backends", "calibration", "tests.stored_readers")
#: In Python, and between a reader and the bytes; every module costs seconds at the start.
LIBRARIES = {
    "image": ("PIL",),
    "toml": ("tomllib",),
    "arrays": ("zipfile", "numpy.lib.format", "numpy.lib._npyio_impl"),
    "checkpoint": ("zipfile",),
}


def main(arguments: Sequence[str]) -> None:
    """Fuzz one reader; libFuzzer ends the process, with 0 where nothing was found."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.fuzz", description=str(__doc__).split("\n\n")[0])
    parser.add_argument("reader")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, default=Path(tempfile.gettempdir()) / "faqd-corpora")
    chosen = parser.parse_args(arguments)
    atheris: Any = importlib.import_module("atheris")  # no dependency: it has no wheels for newer Pythons
    with atheris.instrument_imports(include=[*OURS, *LIBRARIES.get(chosen.reader, ())]):
        readers: Any = importlib.import_module("tests.stored_readers")
    if chosen.reader not in readers.READERS:
        parser.error(f"no reader {chosen.reader}: one of {', '.join(readers.READERS)}")
    reader = readers.READERS[chosen.reader]
    corpus, failed = (chosen.corpus / f"{chosen.reader}{end}" for end in ("", ".failed"))
    for folder in (corpus, failed):
        folder.mkdir(parents=True, exist_ok=True)
    kept = sorted((readers.CORPORA / chosen.reader).glob("*"))
    for seed in (*reader.seeds, *(file.read_bytes() for file in kept)):
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    with tempfile.TemporaryDirectory() as place:
        flags = {"max_total_time": chosen.seconds, "timeout": 10, "rss_limit_mb": 4096, "max_len": 1 << 16}
        atheris.Setup(
            [
                sys.argv[0],
                *(f"-{flag}={value}" for flag, value in flags.items()),
                f"-artifact_prefix={failed}/",
                "-print_final_stats=1",
                str(corpus),
            ],
            lambda content: readers.outcome(reader, content, Path(place)) and None,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
