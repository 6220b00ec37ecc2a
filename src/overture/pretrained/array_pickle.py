"""Numpy arrays out of a pickle in which nothing else is admitted. Neither numpy nor anyone else builds them for it.

A pickle calls what it names. Here the three names that an array needs stand for three things of ours, which take the
words of an array and check them; every other name is refused.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from overture.errors import OvertureError

__all__ = ["Arrays", "read_array_pickle"]

Arrays = dict[str, NDArray[Any]]

FLOATS = re.compile(r"f[248]")


def read_array_pickle(data: bytes, what: str) -> Arrays:
    """Nested dicts of float arrays as one dict, keys joined by ``/``; ``what`` it is, for the one-line error."""
    try:
        return _flat(_ArrayUnpickler(io.BytesIO(data)).load())
    except Exception as error:  # a pickle can make its reader raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OvertureError(f"{what}: is no pickle of numpy arrays alone ({reason})") from error


class _DtypeWords:
    """Stands for ``numpy.dtype``: what a pickle says of a number type."""

    __slots__ = ("order", "text")

    def __init__(self, text: str, align: object = False, copy: object = True) -> None:
        if not isinstance(text, str) or not FLOATS.fullmatch(text):
            raise ValueError(f"an array of type {text!r}, not of floats")
        self.text, self.order = text, "="

    order: Literal["<", ">", "=", "|"]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "=", "|") or any(part is not None for part in state[2:5]):
            raise ValueError("an array of structures")
        self.order = state[1]

    def made(self) -> np.dtype[Any]:
        return np.dtype(self.text).newbyteorder(self.order)


class _ArrayWords:
    """What a pickle says of an array, and the array."""

    __slots__ = ("values",)

    values: NDArray[Any]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, words, fortran, data = state
        if not isinstance(words, _DtypeWords) or not isinstance(data, bytes):
            raise ValueError("an array without its type or its bytes")
        dtype = words.made()
        if not all(isinstance(side, int) and side >= 0 for side in shape):
            raise ValueError(f"an array of shape {shape!r}")
        if math.prod(shape) * dtype.itemsize != len(data):
            raise ValueError(f"an array of shape {shape} in {len(data)} bytes")
        values = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
        self.values = values.astype(dtype.newbyteorder("="), order="C", copy=False)


class _ArrayType:
    """Stands for ``numpy.ndarray``, which a pickle hands on and never calls."""

    __slots__ = ()


class _Reconstruct:
    """Stands for the function of numpy that begins an array."""

    __slots__ = ()

    def __call__(self, kind: object, shape: object, code: object) -> _ArrayWords:
        if not isinstance(kind, _ArrayType):
            raise ValueError("an array of another class")
        return _ArrayWords()


class _Dtype:
    """Stands for the name ``numpy.dtype``."""

    __slots__ = ()

    def __call__(self, *words: Any) -> _DtypeWords:
        return _DtypeWords(*words)


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The three names of numpy 1 and 2; they have no attributes, so that a pickle cannot change them."""
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _Reconstruct()
        if module == "numpy" and name == "ndarray":
            return _ArrayType()
        if module == "numpy" and name == "dtype":
            return _Dtype()
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _flat(tree: Any) -> Arrays:
    """Leaves by path. Dicts may be shared or hold themselves, in a pickle: each is entered once."""
    if type(tree) is not dict:
        raise ValueError(f"it holds a {type(tree).__name__}, not a dict")
    found: Arrays = {}
    entered: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", tree)]
    while waiting:
        path, part = waiting.pop()
        if isinstance(part, _ArrayWords) and hasattr(part, "values"):
            found[path] = part.values
        elif type(part) is dict and id(part) not in entered and all(isinstance(key, str) for key in part):
            entered.add(id(part))
            waiting += [(f"{path}/{key}" if path else key, value) for key, value in part.items()]
        else:
            raise ValueError(f"it holds a {type(part).__name__} at '{path}'")
    return found
