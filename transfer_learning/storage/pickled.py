"""Reads pickles as data: nothing in them is imported, called or compared; calls are returned as records.

A pickle is a program. This interpreter knows only the instructions for plain values, names and calls. A restricted
`Unpickler` is not enough: it hashes nested keys endlessly, crashes on deep ones, and allocates any memory the file asks
for.
"""

import pickletools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

MAX_INSTRUCTIONS = 500_000  # some hundred bytes of memory each; a network of 1,000 arrays has 50,000


class Name(str):
    """A global that the pickle names, as ``collections.OrderedDict``."""


class Reference(NamedTuple):
    """A persistent id: an object outside of the pickle, such as the values of a tensor."""

    id: Any


@dataclass(eq=False)
class Call:
    """A call that the pickle asks for; it is never made."""

    function: Name
    arguments: tuple
    state: Any = None  # for the result's __setstate__
    items: dict = field(default_factory=dict)  # for the result's __setitem__


def read_pickle(file: IO[bytes], check_name: Callable[[str], None]) -> Any:
    """Reads one pickle and leaves `file` at its end.

    Args:
        check_name: raises ValueError for a global that is not expected.

    Returns:
        None, bool, int, float, str, bytes, tuple, list, dict with keys that are str, bytes or int, `Name`, `Call` and
        `Reference`.

    Raises:
        ValueError: it is not a pickle, or has another instruction.
        Exception: of any kind, for a damaged pickle.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    argument: Any
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if number > MAX_INSTRUCTIONS:
            raise ValueError(f"its pickle has more than {MAX_INSTRUCTIONS:,} instructions")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case (
                "BININT"
                | "BININT1"
                | "BININT2"
                | "LONG1"
                | "BINFLOAT"
                | "BINUNICODE"
                | "SHORT_BINUNICODE"
                | "BINBYTES"
                | "SHORT_BINBYTES"
            ):
                stack.append(argument)
            case "BINSTRING" | "SHORT_BINSTRING":  # str of Python 2, which is bytes
                stack.append(argument.encode("latin-1"))
            case "MARK":
                marks.append(len(stack))
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                stack.append({"EMPTY_TUPLE": (), "EMPTY_LIST": [], "EMPTY_DICT": {}}[opcode.name])
            case "TUPLE":
                stack.append(tuple(_above_mark(stack, marks)))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(_top(stack, int(opcode.name[-1]))))
            case "APPEND" | "APPENDS":
                values = _top(stack, 1) if opcode.name == "APPEND" else _above_mark(stack, marks)
                _of_type(stack[-1], list).extend(values)
            case "SETITEM" | "SETITEMS":
                values = _top(stack, 2) if opcode.name == "SETITEM" else _above_mark(stack, marks)
                items = stack[-1].items if isinstance(stack[-1], Call) else _of_type(stack[-1], dict)
                for key, value in zip(values[::2], values[1::2], strict=True):
                    if type(key) not in (str, bytes, int):  # hashing another type may never end
                        raise ValueError(f"its pickle has a key that is a {type(key).__name__}")
                    if type(key) is int and abs(key) >= sys.hash_info.modulus:  # many of them may share one hash
                        raise ValueError("its pickle has a key that is a number of too many digits")
                    if key in items:  # else the later one would replace the earlier
                        raise ValueError(f"it has several entries of one name, {str(key)[:100]!r}")
                    items[key] = value
            case "GLOBAL" | "STACK_GLOBAL":
                parts = argument.split(" ", 1) if opcode.name == "GLOBAL" else _top(stack, 2)
                name = ".".join(_of_type(part, str) for part in parts)
                check_name(name)
                stack.append(Name(name))
            case "REDUCE":
                function, arguments = _top(stack, 2)
                stack.append(Call(_of_type(function, Name), _of_type(arguments, tuple)))
            case "BUILD":
                (state,) = _top(stack, 1)
                _of_type(stack[-1], Call).state = state
            case "BINPERSID":
                stack.append(Reference(*_top(stack, 1)))
            case "MEMOIZE" | "BINPUT" | "LONG_BINPUT":
                index = len(memo) if opcode.name == "MEMOIZE" else argument
                if index > number:
                    raise ValueError("its pickle numbers more objects than it has")
                memo[index] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case _:
                raise ValueError(f"its pickle has the instruction {opcode.name}, which plain values do not need")
    raise ValueError("its pickle has no end")


def _top(stack: list[Any], number: int) -> list[Any]:
    if len(stack) < number:
        raise ValueError("its pickle takes more values than it has")
    values = stack[-number:]
    del stack[-number:]
    return values


def _above_mark(stack: list[Any], marks: list[int]) -> list[Any]:
    values = stack[(start := marks.pop()) :]
    del stack[start:]
    return values


def _of_type(value: Any, expected: type) -> Any:
    if type(value) is not expected:
        raise ValueError(f"its pickle has a {type(value).__name__} where a {expected.__name__} is expected")
    return value
