"""Read a pickle as data: a small machine that builds records of what the pickle asks for, and does none of it.

A pickle is a program. Python's own reader imports the names and calls the functions it mentions; this one has nothing that could be
called: a name becomes a `Name`, a call becomes a `Call` with its arguments, an object with a state becomes a `Call` with a `state`.
Whoever wants a tensor from that reads the records (`tensor_records`). The format is documented in the standard library's pickletools.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import IO, Any

MAX_OPERATIONS = 20_000_000
"""A network of 800 MB needs some 50 thousand; the limit bounds the memory that a file of brackets would take."""


class PickleRefused(ValueError):
    """The pickle is damaged, cut, or asks for something that a checkpoint never needs."""


@dataclass(frozen=True)
class Name:
    """A class or function that the pickle mentions; never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Call:
    """An object the pickle wants made by calling `what`; never called. It has its own state, dictionary items and list values."""

    what: object
    arguments: object
    state: object = None
    items: dict[Hashable, Any] = field(default_factory=dict)
    values: list[Any] = field(default_factory=list)

    def is_call_of(self, *names: str) -> bool:
        """Whether it is a call of one of these, each "module.name"."""
        return isinstance(self.what, Name) and str(self.what) in names


@dataclass(frozen=True, eq=False)
class Persistent:
    """A reference to something beside the pickle; in checkpoints, to a storage."""

    key: object


class _Mark:
    """Where a tuple, list or dict begins on the stack."""


MARK = _Mark()
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
VALUES = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    )
)
IGNORED = frozenset(("PROTO", "FRAME"))
KEYS = (str, int, float, bytes, type(None), Name)
"""What may be the key of a dictionary. A tuple may not: tuples within tuples can take for ever to hash."""


def read_pickle(stream: IO[bytes]) -> Any:
    """Return the records of the pickle that starts at the stream's position, which is behind it afterwards.

    Built of None, bool, int, float, str, bytes, tuple, list, dict, `Name`, `Call` and `Persistent`; objects may be shared and cyclic.
    Raises `PickleRefused`.
    """
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= MAX_OPERATIONS:
                raise PickleRefused(f"more than {MAX_OPERATIONS} operations")
            if opcode.name == "STOP":
                return machine.result()
            machine.do(opcode.name, argument)
    except (IndexError, KeyError, TypeError) as error:
        raise PickleRefused(f"it is not a well-formed pickle ({type(error).__name__}: {error})") from error
    except (ValueError, EOFError, OverflowError, MemoryError, struct.error) as error:
        raise error if isinstance(error, PickleRefused) else PickleRefused(str(error)) from error
    raise PickleRefused("it ends early")


class _Machine:
    """The stack and the memo; one method per group of operations."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def result(self) -> Any:
        if len(self.stack) != 1 or self.stack[0] is MARK:
            raise PickleRefused("its stack is not in order at the end")
        return self.stack[0]

    def do(self, name: str, argument: Any) -> None:
        """Carry out one operation."""
        if name in VALUES:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name not in IGNORED:
            method = getattr(self, f"do_{name.lower()}", None)
            if method is None:
                raise PickleRefused(f"it uses the operation {name}, which checkpoints don't need")
            method(argument)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is MARK:
            raise PickleRefused("its stack is not in order")
        return value

    def to_mark(self) -> list[Any]:
        """Pop everything above the last mark, and the mark."""
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is MARK:
                values = self.stack[index + 1 :]
                del self.stack[index:]
                return values
        raise PickleRefused("a mark is missing")

    def do_mark(self, _: Any) -> None:
        self.stack.append(MARK)

    def do_pop(self, _: Any) -> None:
        self.stack.pop()

    def do_pop_mark(self, _: Any) -> None:
        self.to_mark()

    def do_dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def do_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def do_put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    do_binput = do_long_binput = do_put

    def do_get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    do_binget = do_long_binget = do_get

    def do_empty_tuple(self, _: Any) -> None:
        self.stack.append(())

    def do_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self.to_mark()))

    def do_tuple1(self, _: Any) -> None:
        self.stack.append((self.pop(),))

    def do_tuple2(self, _: Any) -> None:
        second, first = self.pop(), self.pop()
        self.stack.append((first, second))

    def do_tuple3(self, _: Any) -> None:
        third, second, first = self.pop(), self.pop(), self.pop()
        self.stack.append((first, second, third))

    def do_empty_list(self, _: Any) -> None:
        self.stack.append([])

    do_empty_set = do_empty_list

    def do_list(self, _: Any) -> None:
        self.stack.append(self.to_mark())

    do_frozenset = do_list

    def do_append(self, _: Any) -> None:
        self._extend([self.pop()])

    def do_appends(self, _: Any) -> None:
        self._extend(self.to_mark())

    do_additems = do_appends

    def do_empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def do_dict(self, _: Any) -> None:
        values = self.to_mark()
        self.stack.append({})
        self._update(values)

    def do_setitem(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self._update([key, value])

    def do_setitems(self, _: Any) -> None:
        self._update(self.to_mark())

    def do_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(Name(module, name))

    def do_stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleRefused("a name is no text")
        self.stack.append(Name(module, name))

    def do_reduce(self, _: Any) -> None:
        arguments, what = self.pop(), self.pop()
        self.stack.append(Call(what, arguments))

    do_newobj = do_reduce

    def do_newobj_ex(self, _: Any) -> None:
        _keywords, arguments, what = self.pop(), self.pop(), self.pop()
        self.stack.append(Call(what, arguments))

    def do_obj(self, _: Any) -> None:
        what, *arguments = self.to_mark()
        self.stack.append(Call(what, tuple(arguments)))

    def do_inst(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(Call(Name(module, name), tuple(self.to_mark())))

    def do_build(self, _: Any) -> None:
        state, target = self.pop(), self.stack[-1]
        if not isinstance(target, Call):
            raise PickleRefused(f"it sets the state of a {type(target).__name__}")
        target.state = state

    def do_binpersid(self, _: Any) -> None:
        self.stack.append(Persistent(self.pop()))

    def do_persid(self, argument: str) -> None:
        self.stack.append(Persistent(argument))

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Call):
            target = target.values
        if not isinstance(target, list):
            raise PickleRefused(f"it appends to a {type(target).__name__}")
        target.extend(values)

    def _update(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Call):
            target = target.items
        if not isinstance(target, dict) or len(values) % 2:
            raise PickleRefused(f"it sets items of a {type(target).__name__}")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, KEYS):
                raise PickleRefused(f"a {type(key).__name__} is the key of a dictionary")
            target[key] = value
