"""Check a bundle on the machine where it will run; needs Python 3.10, numpy and the bundle's runtime only.

Every bundle holds a copy of this file. Usage: python3 check.py [--help]. Exit status: 0 every output is as it should
be, 1 one is not, 2 a mistake in the input or on this device, which one line names.
"""

import sys

# First of all the bundle's folder leaves the import path: a numpy.py that lies there would be run instead of NumPy.
if __name__ == "__main__" and not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
    del sys.path[0]
import os

HERE = os.path.dirname(os.path.abspath(__file__))
# However it got there: by an empty entry of PYTHONPATH, or as the folder that Python was started in.
sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or os.curdir) != os.path.realpath(HERE)]
import hashlib  # noqa: E402  # from here on, what is imported is Python's own
import importlib.abc  # noqa: E402
import importlib.machinery  # noqa: E402
import importlib.util  # noqa: E402
import json  # noqa: E402
import runpy  # noqa: E402

PACKAGE, MANIFEST, MOST = "faqd_device", "manifest.json", 1 << 26


def refuse(line: str) -> None:
    """End as for every mistake: one line, status 2."""
    sys.stderr.write("error: " + "".join(letter if letter.isprintable() else "?" for letter in line) + "\n")
    sys.exit(2)


def read(name: str) -> bytes:
    """A file of this folder."""
    path = os.path.join(HERE, *name.split("/"))
    if not os.path.isfile(path):  # a pipe would be waited for
        raise ValueError(name + " is missing or no file")
    with open(path, "rb") as file:
        return file.read(MOST)


def vouched_sources() -> "dict[str, bytes]":
    """Every module of the package, by the path of its file: bytes that the manifest vouches for."""
    sources: dict[str, bytes] = {}
    manifest = json.loads(read(MANIFEST).decode("utf-8"))
    said = {key: value for key, value in manifest.items() if key != "sha256"}
    own = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    if manifest["format"] != 2 and manifest.get("sha256") != own:  # all that came later vouch for themselves
        raise ValueError(MANIFEST + " was changed after it was written (its own SHA-256 differs)")
    for name, digest in manifest["files"].items():
        if name.startswith(PACKAGE + "/") and name.endswith(".py") and ".." not in name:
            sources[name] = read(name)
            if hashlib.sha256(sources[name]).hexdigest() != digest:
                raise ValueError(name + " is not what " + MANIFEST + " says (SHA-256 differs)")
    if PACKAGE + "/__init__.py" not in sources:
        raise ValueError(MANIFEST + " vouches for no " + PACKAGE)
    return sources


class Vouched(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports the package from those bytes, never from what lies on the disk meanwhile, bytecode among it."""

    def __init__(self, sources: "dict[str, bytes]") -> None:
        self.sources = sources

    def _file(self, module: str) -> "str | None":
        stem = module.replace(".", "/")
        return next((name for name in (stem + "/__init__.py", stem + ".py") if name in self.sources), None)

    def find_spec(
        self, module: str, path: object = None, target: object = None
    ) -> "importlib.machinery.ModuleSpec | None":
        """Where a module of the package comes from; others are not looked for here."""
        name = self._file(module)
        if name is None:
            if module.split(".")[0] == PACKAGE:
                raise ImportError(MANIFEST + " vouches for no module " + module, name=module)
            return None
        return importlib.util.spec_from_loader(module, self, origin=os.path.join(HERE, *name.split("/")))

    def is_package(self, module: str) -> bool:
        """Whether a module has others below it."""
        return str(self._file(module)).endswith("/__init__.py")

    def get_source(self, module: str) -> str:
        """What the manifest vouches for."""
        return self.sources[str(self._file(module))].decode("utf-8")


def main() -> None:
    """Run the check, once its own code is known to be the run's."""
    if sys.version_info < (3, 10):  # noqa: UP036  # devices are older than the machines that bundles are made on
        refuse("check.py needs Python 3.10 or newer; this is " + sys.version.split()[0])
    try:
        import numpy  # noqa: F401  # only whether it is there: all that follows needs it
    except ImportError as error:
        refuse("check.py needs NumPy (" + str(error).split("\n")[0] + "): pip install numpy")
    try:
        finder = Vouched(vouched_sources())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        refuse(HERE + " is damaged (" + str(error) + "): copy the bundle anew, or make it anew")
    sys.dont_write_bytecode = True
    sys.meta_path.insert(0, finder)
    try:
        check = importlib.import_module(PACKAGE).CHECK  # which of the packages there it is
        runpy.run_module(PACKAGE + "." + check, run_name="__main__", alter_sys=True)
    except ImportError as error:
        if not str(error.name).startswith(PACKAGE):
            raise
        refuse(HERE + " is damaged (" + str(error) + "): copy the bundle anew, or make it anew")


if __name__ == "__main__":
    main()
