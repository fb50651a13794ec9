"""Which ATen operators networks of four libraries export to, and what becomes of each network: kept in one file.

    python3 -m tests.operator_survey [--export-only] [LIBRARY ...]

asks the networks of these libraries (timm, torchvision, transformers, ultralytics; of all) that have no row in
tests/backends/operators/operator_survey.jsonl yet, and adds theirs. A library that is not installed has none. The row
of a network that does not run on images alone (an input of its own, a package or a download that is not there), or that
is too large or too slow for this machine, says "not asked" and why; without its row it is asked again. Blocks that
repeat each other are left out, as they add no operator. With --export-only a network is exported without values, in a
fraction of the time, and its row says "exported"; without, such a network is asked again and converted.
FAQD_SURVEY_SECONDS is the time for one network (120), `ulimit -v` its memory. tests/operator_table.py shows the rows as
a page.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import sys
import warnings
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.fx import Graph, GraphModule

from backends.onnx_file.emit import emit
from calibration.capture import graph_from_module as capturing
from calibration.capture.eager import own_copy
from calibration.errors import UserError
from calibration.normal_form.rules import normal_form
from calibration.rewrites.fold import fold
from tests.architectures import LIBRARIES, Architecture

FILE = Path(__file__).parent / "backends" / "operators" / "operator_survey.jsonl"
_SECONDS = int(os.environ.get("FAQD_SURVEY_SECONDS", "120"))  # for one network

NOT_ASKED = "not asked: "  # what an outcome starts with where the network says nothing about us

Row = dict[str, Any]


def read() -> list[Row]:
    """A row per network, the last one written: library, network, the operators of its export, what became of it."""
    rows = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()] if FILE.exists() else []
    return list({(row["library"], row["network"]): row for row in rows}.values())


def survey(architecture: Architecture) -> Row:
    """What one network exports to, and "converted", or the line that refuses it."""
    exported: list[set[str]] = []

    def noted(captured: GraphModule, *, source: str) -> Graph:
        exported.append({word for part in captured.modules() for word in _operators(part)})
        return normal_form(captured, source=source)

    try:
        with warnings.catch_warnings(), mock.patch.object(capturing, "normal_form", noted):
            warnings.simplefilter("ignore")  # the libraries' own
            torch.manual_seed(0)
            module, example = without_repeats(architecture.build().eval()), architecture.example()
            try:
                with torch.no_grad():
                    own_copy(module)(example)
            except Exception:  # it counts its blocks: whatever its own code raises then
                module = architecture.build().eval()
            emit(fold(capturing.capture(module, example, source=architecture.name)), opset=20)
        outcome = "converted"
    except UserError as error:
        outcome = str(error)
    return _row(architecture, sorted(exported[-1]) if exported else [], outcome)


def exported_alone(architecture: Architecture) -> Row:
    """What one network exports to, without values where it can be built so, and "exported", or the line."""
    refusal: UserError | None = None
    for device, change in (("meta", without_repeats), ("cpu", without_repeats), ("cpu", _unchanged)):
        try:
            with warnings.catch_warnings(), torch.device(device):
                warnings.simplefilter("ignore")  # the libraries' own
                module = change(architecture.build().eval())
                shape = architecture.example().shape
                captured, _ = capturing.exported_graph(module, torch.randn(shape), source=architecture.name)
        except UserError as error:
            refusal = error
        except Exception:  # the library's own code, which may want values, or count its blocks
            if (device, change) == ("cpu", _unchanged):
                raise
        else:
            words = sorted({word for part in captured.modules() for word in _operators(part)})
            return _row(architecture, words, "exported")
    assert refusal is not None
    return _row(architecture, [], str(refusal))


def _unchanged(module: nn.Module) -> nn.Module:
    return module


def _row(architecture: Architecture, operators: list[str], outcome: str) -> Row:
    outcome = re.sub(r"/[^ ]*/(?=(?:timm|torchvision|transformers|ultralytics|torch)/)", "", outcome)  # of this machine
    return {
        "library": architecture.library,
        "network": architecture.name,
        "operators": operators,
        "outcome": outcome,
    }


def _operators(part: nn.Module) -> set[str]:
    graph = getattr(part, "graph", None)
    if not isinstance(graph, Graph):
        return set()
    named = {str(node.target) for node in graph.nodes if node.op == "call_function"}
    return {name for name in named if "." in name and not name.startswith(("<", "math"))}


def without_repeats(module: nn.Module) -> nn.Module:
    """The network with two of the neighbours in a list that are alike in the names and shapes of their parameters."""

    def form(block: nn.Module) -> list[tuple[str, torch.Size]]:
        return [(name, parameter.shape) for name, parameter in block.named_parameters()]

    for sequence in [child for child in module.modules() if isinstance(child, (nn.Sequential, nn.ModuleList))]:
        run = 0
        for (_, before), (name, block) in itertools.pairwise(list(sequence.named_children())):
            run = run + 1 if form(block) and form(block) == form(before) else 0
            if run >= 2:
                delattr(sequence, name)
    return module


def _too_slow(number: int, frame: FrameType | None) -> None:
    raise TimeoutError("took too long")


def _own_refusal(architecture: Architecture) -> str | None:
    """Why a network does not run on images by itself, as its library configures it; None where it does."""
    signal.alarm(_SECONDS)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            architecture.build().eval()(architecture.example())
    except TimeoutError:
        return f"takes more than {_SECONDS} seconds here"
    except Exception as error:  # the library's own code
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            return "too large to build here"
        line = " ".join(str(error).split())
        return f"does not run on images alone as it is built here ({type(error).__name__}: {line[:160]})"
    finally:
        signal.alarm(0)
    return None


def main(libraries: list[str], *, export_only: bool = False) -> None:
    """Add the rows that are missing."""
    done = [row for row in read() if export_only or row["outcome"] != "exported"]
    known = {(row["library"], row["network"]) for row in done}
    signal.signal(signal.SIGALRM, _too_slow)
    for library in libraries or LIBRARIES:
        for architecture in LIBRARIES[library]():
            if (library, architecture.name) in known:
                continue
            signal.alarm(_SECONDS)
            try:
                row = exported_alone(architecture) if export_only else survey(architecture)
            except Exception as error:  # the library's own code, or a fault of ours, which the row then shows
                row = _row(architecture, [], f"{type(error).__name__}: {str(error)[:300]}")
            finally:
                signal.alarm(0)
            if row["outcome"] not in ("converted", "exported"):
                refusal = _own_refusal(architecture)
                if refusal is None and "took too long" in row["outcome"]:
                    refusal = f"takes more than {_SECONDS} seconds to export here"
                if refusal is not None:
                    row = _row(architecture, [], NOT_ASKED + refusal)
            print(f"{architecture.name}: {row['outcome'][:300]}", flush=True)
            with FILE.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main([word for word in sys.argv[1:] if word != "--export-only"], export_only="--export-only" in sys.argv)
