"""Pickles read as data: every opcode is followed, nothing that a pickle names is imported, called or built."""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any, final

MARK = object()
"""What stands on the stack where a group of items begins."""


class InertPickleError(Exception):
    """The bytes are no complete, well-formed pickle; the message says where."""


@final
@dataclass(frozen=True, kw_only=True)
class Symbol:
    """A function or class that a pickle names: the two words, never the thing."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@final
@dataclass(eq=False, kw_only=True)
class Foreign:
    """An object that unpickling would have made by calling `made_by`: what it would have been made from."""

    made_by: object  # a Symbol, or whatever else stood there
    arguments: object = ()
    state: object = None
    items: dict[object, object] = field(default_factory=dict)  # of subclasses of dict
    elements: list[object] = field(default_factory=list)  # of subclasses of list and set


def read_inert(
    stream: IO[bytes],
    *,
    rebuild: Callable[[Symbol, object], object | None] = lambda symbol, arguments: None,
    outside: Callable[[object], object] = lambda identity: Foreign(made_by="persistent_load", arguments=identity),
) -> tuple[Any, frozenset[Symbol]]:
    """Return what the next pickle of a stream holds, and every symbol that it would have called.

    Numbers, texts, bytes, tuples, lists, sets and dictionaries (also OrderedDict and defaultdict, as plain ones) are
    themselves; a class or function is a `Symbol`, an instance or result of one a `Foreign`, unless `rebuild` of the
    symbol and the arguments, both as read here, returns what is to stand there. `outside` says what stands for a
    reference out of the pickle, such as a storage.

    Raises:
        InertPickleError: the stream holds no well-formed pickle.
    """
    machine = _Machine(rebuild, outside)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                return machine.stack.pop(), frozenset(machine.called)
            machine.step(opcode.name, argument)
    # What malformed opcodes, arguments and stacks make of pickletools and of the steps below.
    except _MALFORMED as error:
        raise InertPickleError(f"{type(error).__name__}: {error}") from None
    raise InertPickleError("it ends before its end mark")


_MALFORMED = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
    EOFError,
    MemoryError,  # a text that says it is longer than any file
)
_DICTIONARIES = {"collections.OrderedDict", "collections.defaultdict", "builtins.dict", "__builtin__.dict"}
_SETS = {"builtins.set", "__builtin__.set", "builtins.frozenset", "__builtin__.frozenset"}
_NOTHING = {"PROTO", "FRAME"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], object]] = {
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
    "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
}  # fmt: skip


@final
class _Machine:
    """The pickle machine with a stack and a memory, and without any way to reach Python's own objects."""

    def __init__(self, rebuild: Callable[[Symbol, object], object | None], outside: Callable[[object], object]) -> None:
        self.rebuild, self.outside = rebuild, outside
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}
        self.called: set[Symbol] = set()

    def step(self, name: str, argument: Any) -> None:
        """Follow one opcode."""
        stack = self.stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in {"PUT", "BINPUT", "LONG_BINPUT"}:
            self.memory[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memory[len(self.memory)] = stack[-1]
        elif name in {"GET", "BINGET", "LONG_BINGET"}:
            stack.append(self.memory[argument])
        elif name == "MARK":
            stack.append(MARK)
        elif name in {"TUPLE1", "TUPLE2", "TUPLE3"}:
            count = int(name[-1])
            stack[-count:] = [tuple(stack[len(stack) - count :])]
        elif name in {"POP", "POP_MARK"}:
            if name == "POP" and stack[-1] is not MARK:
                stack.pop()
            else:
                self._group()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name not in _NOTHING and not self._collect(name):
            self._construct(name, argument)

    def _group(self) -> list[Any]:
        """Take everything above the innermost mark off the stack, and the mark."""
        start = len(self.stack) - 1
        while start >= 0 and self.stack[start] is not MARK:
            start -= 1
        if start < 0:
            raise IndexError("a group without a beginning")
        items = self.stack[start + 1 :]
        del self.stack[start:]
        return items

    def _collect(self, name: str) -> bool:
        """Follow an opcode that fills or makes a collection; whether it is one."""
        stack = self.stack
        if name in {"TUPLE", "LIST", "DICT", "FROZENSET"}:
            items = self._group()
            made: dict[str, Callable[[], object]] = {
                "TUPLE": lambda: tuple(items),
                "LIST": lambda: items,
                "DICT": lambda: dict(zip(items[::2], items[1::2], strict=True)),
                "FROZENSET": lambda: frozenset(items),
            }
            stack.append(made[name]())
        elif name in {"APPEND", "APPENDS", "ADDITEMS"}:
            items = [stack.pop()] if name == "APPEND" else self._group()
            target = stack[-1]
            if isinstance(target, list):
                target.extend(items)
            elif isinstance(target, set):
                target.update(items)
            else:
                target.elements.extend(items)
        elif name in {"SETITEM", "SETITEMS"}:
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._group()
            target = stack[-1]
            (target if isinstance(target, dict) else target.items).update(zip(items[::2], items[1::2], strict=True))
        else:
            return False
        return True

    def _construct(self, name: str, argument: Any) -> None:
        """Follow an opcode that would import, call or build something."""
        stack = self.stack
        if name in {"GLOBAL", "STACK_GLOBAL"}:
            first, second = argument.split(" ", 1) if name == "GLOBAL" else (stack.pop(-2), stack.pop())
            stack.append(Symbol(module=str(first), name=str(second)))
        elif name in {"EXT1", "EXT2", "EXT4"}:
            stack.append(Symbol(module="copyreg", name=f"extension {argument}"))
        elif name in {"REDUCE", "NEWOBJ", "NEWOBJ_EX"}:
            keywords = stack.pop() if name == "NEWOBJ_EX" else None
            arguments, made_by = stack.pop(), stack.pop()
            stack.append(self._called(made_by, arguments, keywords))
        elif name == "INST":
            first, second = argument.split(" ", 1)
            stack.append(self._called(Symbol(module=first, name=second), tuple(self._group()), None))
        elif name == "OBJ":
            made_by, *rest = self._group()
            stack.append(self._called(made_by, tuple(rest), None))
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], Foreign):
                stack[-1].state = state
        elif name in {"PERSID", "BINPERSID"}:
            stack.append(self.outside(argument if name == "PERSID" else stack.pop()))
        else:
            raise ValueError(f"opcode {name} is of no checkpoint")

    def _called(self, made_by: object, arguments: object, keywords: object) -> object:
        if isinstance(made_by, Symbol):
            if str(made_by) in _DICTIONARIES:
                return _dictionary(str(made_by), arguments)
            if str(made_by) in _SETS:
                return set(arguments[0]) if isinstance(arguments, tuple) and arguments else set()
            rebuilt = self.rebuild(made_by, arguments)
            if rebuilt is not None:
                return rebuilt
            self.called.add(made_by)
        return Foreign(made_by=made_by, arguments=arguments, state=keywords)


def _dictionary(name: str, arguments: object) -> dict[object, object]:
    """An OrderedDict of pairs, or a defaultdict of a factory (which is left out) and pairs, as a plain dictionary."""
    pairs: Any = arguments if isinstance(arguments, tuple) else ()
    if name == "collections.defaultdict":
        pairs = pairs[1:]
    return dict(pairs[0]) if pairs else {}
