"""Networks named otherwise than KIND:REST: taken where one meaning alone is possible, else a line of what to type."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from collections.abc import Iterable
from pathlib import Path

from calibration.errors import UserError
from pipeline.networks.architectures.cifar_resnet import BLOCKS
from pipeline.networks.checkpoints.file_kinds import CHECKPOINT_SUFFIXES
from pipeline.networks.checkpoints.files import read_checkpoint
from pipeline.networks.sources.table import MODEL_SOURCES
from pipeline.tools.source_text import close_matches, shortened

_BUILDER = "--teacher python:MODULE:FUNCTION"
_HUBS = ("hf", "hf_hub", "hf-hub", "huggingface", "transformers")
# Ending of a file -> what it is and what to do with it; {} stands for the file's name.
_FILES = {
    ".onnx": "an ONNX file, from which no network is read yet: name the PyTorch network that it was exported from, or"
    f" let a function return onnx2torch.convert('{{}}') (pip install onnx2torch) and write {_BUILDER}",
    ".pt2": "an exported program, whose sizes are fixed: name the network that it was exported from",
    ".tflite": "a TensorFlow Lite model: only networks of PyTorch are read",
    ".pb": "a TensorFlow model: only networks of PyTorch are read",
    ".h5": "a Keras model: only networks of PyTorch are read",
    ".keras": "a Keras model: only networks of PyTorch are read",
    ".xml": "an OpenVINO model: name the PyTorch network that it was converted from",
    ".engine": "a TensorRT engine: name the PyTorch network that it was built from",
    ".mlmodel": "a Core ML model: name the PyTorch network that it was converted from",
    ".yaml": "a description of a network: let a function build it, and write " + _BUILDER,
    ".yml": "a description of a network: let a function build it, and write " + _BUILDER,
    ".ipynb": "a notebook: put the function that builds the network into a file mynet.py and write python:mynet:build",
}


def full_source(source: str) -> tuple[str, tuple[str, ...]]:
    """Return a network's name as KIND:REST, and what was taken where it was named otherwise.

    Raises:
        UserError: it can mean nothing or several things; the line says what to type.
    """
    kind, colon, rest = source.partition(":")
    if kind in MODEL_SOURCES:
        if kind == "python" and ".py" in rest:
            return _of_python_file(rest, source)
        return source, ()
    if (kind.lower() in _HUBS and colon) or source.startswith(("https://huggingface.co/", "http://huggingface.co/")):
        raise UserError(_of_hub(rest if kind.lower() in _HUBS else source.partition("huggingface.co/")[2], source))
    if colon and rest.startswith("//"):
        raise UserError(f"network {source!r} is an address: download the file, and give weights with --weights FILE")
    path, file = Path(source), re.match(r"(.+\.py)(:\w+)?$", source)
    if file is not None:
        return _of_python_file(source, source)
    suffix = path.suffix.lower()
    if suffix in _FILES:
        raise UserError(f"network {source!r} is {_FILES[suffix].format(source)}")
    if suffix in (*CHECKPOINT_SUFFIXES, ".tar") or path.is_file():
        raise UserError(_of_checkpoint(path))
    if (path.is_dir() and "/" in source) or (path / "config.json").is_file():
        raise UserError(_of_folder(path, source))
    return _of_name(source) if not colon else _of_kind(kind, rest, source)


def _of_name(source: str) -> tuple[str, tuple[str, ...]]:
    """A bare name, or one behind the library's, as `timm/NAME` and `torchvision.models.NAME`."""
    text, mark, options = source.partition("?")
    known = _known()
    for prefix, kind in (("timm/", "timm"), ("torchvision/", "torchvision"), ("torchvision.models.", "torchvision")):
        if text.startswith(prefix) and text.removeprefix(prefix) in known.get(kind, ()):
            return _taken(f"{kind}:{text.removeprefix(prefix)}{mark}{options}", source)
    kinds = [kind for kind, names in known.items() if text in names]
    if len(kinds) == 1:
        return _taken(f"{kinds[0]}:{source}", source)
    if kinds:
        choices = " or ".join(f"{kind}:{source}" for kind in kinds)
        raise UserError(f"network {source!r}: {' and '.join(kinds)} have one of this name: write {choices}")
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", text):
        raise UserError(_of_hub(text, source))
    if close_matches(text, ["digits"]).startswith("did"):
        raise UserError(f"unknown network {source!r}: did you mean digits?")
    names = [f"{kind}:{name}" for kind, names in known.items() for name in names]
    near = close_matches(text, {name.partition(":")[2] for name in names}).removeprefix("did you mean ").rstrip("?")
    full = [name for part in near.split(", ") for name in names if name.partition(":")[2] == part][:5]
    guess = f"did you mean {', '.join(full)}?" if full else _what_is_known()
    raise UserError(f"unknown network {source!r}: {guess}")


def _of_kind(kind: str, rest: str, source: str) -> tuple[str, tuple[str, ...]]:
    """An unknown kind before a colon."""
    near = close_matches(kind, MODEL_SOURCES)
    if near.startswith("did"):
        nearest = near.removeprefix("did you mean ").rstrip("?").split(", ")[0]
        raise UserError(f"unknown network {source!r}: did you mean {nearest}:{rest}?")
    is_dotted = all(part.isidentifier() for part in f"{kind}.{rest}".split("."))
    if is_dotted and (_module_file(kind).is_file() or _module_file(f"{kind}.__init__").is_file()):
        raise UserError(f"unknown network {source!r}: did you mean python:{source}?")
    raise UserError(f"unknown network {source!r}: {_what_is_known()}")


def _what_is_known() -> str:
    return f"it must be kind:rest with one of {', '.join(sorted(MODEL_SOURCES))}"


def _taken(full: str, source: str) -> tuple[str, tuple[str, ...]]:
    return full, (f"{source}: {full} is taken, the only network of this name",)


def _known() -> dict[str, Iterable[str]]:
    """Kind -> names of its networks, as far as its library is installed."""
    from torchvision import models  # here: the import takes a second that full names need not wait

    known: dict[str, Iterable[str]] = {
        "cifar": BLOCKS,
        "torchvision": {name for name in models.list_models() if not name.startswith("quantized_")},
    }
    if importlib.util.find_spec("timm") is not None:
        import timm

        known["timm"] = {*timm.list_models(), *timm.list_pretrained()}
    return known


def _of_hub(repository: str, source: str) -> str:
    name = repository.strip("/") or "ORGANISATION/NAME"
    return (
        f"network {source!r}: of the Hugging Face hub, write timm:hf_hub:{name} for a network of timm's; for one of"
        f" transformers' let a function return AutoModelForImageClassification.from_pretrained({name!r}) and write"
        f" {_BUILDER}"
    )


def _of_checkpoint(path: Path) -> str:
    """What to say of a file of weights in place of a network."""
    if not path.is_file():
        return f"network {str(path)!r}: there is no such file; a network is KIND:REST, its weights --weights FILE"
    try:
        network = next(iter(read_checkpoint(path).contents.networks.values()), "")
    except UserError as error:  # the file is something else, as the line says
        return f"network {str(path)!r}: a network is KIND:REST; the {error!s}"
    held = f" (those of a pickled {network})" if network else ""
    return (
        f"network {str(path)!r} holds weights{held}, not the network that they belong to: write --teacher KIND:REST"
        f" --weights {path}, such as torchvision:NAME, timm:NAME or python:MODULE:FUNCTION"
    )


def _of_folder(path: Path, source: str) -> str:
    """What to say of a folder: one of transformers' says which class it holds."""
    try:
        architectures = json.loads((path / "config.json").read_text()).get("architectures", ())
    except (OSError, ValueError, AttributeError):
        return f"network {source!r} is a folder: a network is KIND:REST, its weights --weights FILE"
    kind = architectures[0] if architectures else "AutoModelForImageClassification"
    return (
        f"network {source!r} is a folder of transformers': let a function return {kind}.from_pretrained({source!r})"
        f" and write {_BUILDER}"
    )


def _of_python_file(rest: str, source: str) -> tuple[str, tuple[str, ...]]:
    """`folder/net.py:build`, as a file: taken where it can be imported from here and the function is certain."""
    file, _, function = rest.partition(":")
    path = Path(file)
    where = f"network {source!r}"
    if not path.is_file():
        raise UserError(f"{where}: there is no such file; write python:package.module:function")
    try:
        inside = path.resolve().relative_to(Path.cwd().resolve()).with_suffix("")
    except ValueError:
        name = function or "FUNCTION"
        raise UserError(
            f"{where}: lies outside of the working directory: cd {path.parent} and write python:{path.stem}:{name}"
        ) from None
    if not all(part.isidentifier() for part in inside.parts):
        raise UserError(f"{where}: its path is no dotted module name: rename it, as in my_net.py")
    builders = _builders(path, where)
    module = ".".join(inside.parts)
    if not function and len(builders) == 1:
        function = builders[0]
    if not function:
        held = f"in it: {shortened(builders, 6)}" if builders else "in it is none that needs no arguments"
        raise UserError(f"{where}: write python:{module}:FUNCTION with a function that returns the network ({held})")
    full = f"python:{module}:{function}"
    return full, (f"{source}: {full} is taken",)


def _builders(path: Path, where: str) -> list[str]:
    """Functions of a file that can be called without arguments, read and not run."""
    try:
        body = ast.parse(path.read_text()).body
    except (SyntaxError, ValueError, OSError) as error:
        raise UserError(f"{where} cannot be read as Python: {error}") from None
    return [
        node.name
        for node in body
        if isinstance(node, ast.FunctionDef)
        and not node.name.startswith("_")
        and len(node.args.defaults) == len(node.args.args) + len(node.args.posonlyargs)
        and None not in node.args.kw_defaults
    ]


def _module_file(module: str) -> Path:
    return Path(*module.split(".")).with_suffix(".py")
