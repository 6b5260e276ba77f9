"""Pickles of plain data, opened without running code.

A pickle is a program: opening it calls every function that it names. `load_plain` calls none of
them: the unpickler itself builds dicts, lists, tuples, sets, strings, bytes and numbers, and the
few names that NumPy's numbers and arrays need are mapped to constructors of this module, which
give Python numbers and nested lists. All other names are refused before they are looked up.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

_KINDS = "biuf"  # booleans, signed and unsigned integers, floats
_LARGEST_ARRAY = 10**8


class _Bytes:
    """``bytes``, ``bytearray`` and ``codecs.encode``, for text only: a size would be allocated."""

    __slots__ = ()  # so that a pickle cannot set attributes

    def __call__(self, text: object = "", encoding: object = "latin1") -> bytes:
        if isinstance(text, (bytes, bytearray)):
            return bytes(text)
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError("bytes that are no text in latin1")
        return text.encode("latin1")


class _DType:
    """``numpy.dtype`` of a number."""

    __slots__ = ("_code", "_order")

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str):
            raise pickle.UnpicklingError("a NumPy type that is not named")
        self._code, self._order = code, "="

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", ">", "=", "|") or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("a NumPy type that is no plain number")
        self._order = state[1]

    def numbers(self, data: Any) -> Any:
        """NumPy array of the numbers in bytes."""
        dtype = np.dtype(self._code).newbyteorder(self._order)  # type: ignore[arg-type]
        if dtype.kind not in _KINDS or not isinstance(data, (bytes, bytearray)):
            raise pickle.UnpicklingError("a NumPy type that is no plain number")
        return np.frombuffer(data, dtype)


class _Array(list[Any]):
    """``numpy.ndarray``, as nested lists."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self[:] = _nested(dtype, data, shape, "F" if fortran else "C")


class _Scalar:
    """``numpy.core.multiarray.scalar``."""

    __slots__ = ()

    def __call__(self, dtype: Any, data: Any) -> Any:
        return dtype.numbers(data)[0].item()


class _Reconstruct:
    """``numpy.core.multiarray._reconstruct``: an empty array, filled later."""

    __slots__ = ()

    def __call__(self, *_: object) -> _Array:
        return _Array()


class _FromBuffer:
    """``numpy.core.numeric._frombuffer`` of protocol 5."""

    __slots__ = ()

    def __call__(self, data: Any, dtype: Any, shape: Any, order: Any, *_: object) -> _Array:
        return _Array(_nested(dtype, data, shape, order))


def _nested(dtype: Any, data: Any, shape: Any, order: Any) -> list[Any]:
    numbers = dtype.numbers(data)
    if not shape or len(numbers) > _LARGEST_ARRAY:
        raise pickle.UnpicklingError(f"a NumPy array of shape {shape}")
    return list(numbers.reshape(shape, order=order).tolist())


_ADMITTED: dict[tuple[str, str], Any] = {
    **{
        (module, name): kind
        for module in ("builtins", "__builtin__")
        for name, kind in (
            ("set", set),
            ("frozenset", frozenset),
            ("bytes", _Bytes()),
            ("bytearray", _Bytes()),
        )
    },
    ("_codecs", "encode"): _Bytes(),
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _Array,
}
for _core in ("numpy.core", "numpy._core"):
    _ADMITTED[f"{_core}.multiarray", "scalar"] = _Scalar()
    _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _Reconstruct()
    _ADMITTED[f"{_core}.numeric", "_frombuffer"] = _FromBuffer()


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise _RefusedError(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise _RefusedError("an object outside the file")


class _RefusedError(Exception):
    """A pickle asked for something that is not plain data."""


def load_plain(data: bytes, name: str) -> Any:
    """Load the plain data of a pickle; nothing that it names is imported or called.

    Parameters
    ----------
    data
        Contents of the pickle.
    name
        Name of the pickle in error messages.

    Returns
    -------
    object
        Dicts, lists, tuples, sets, strings, bytes, numbers, booleans and None; NumPy's numbers and
        arrays as numbers and nested lists.

    Raises
    ------
    ValueError
        If the pickle asks for anything else, or is damaged.
    """
    try:
        return _PlainUnpickler(io.BytesIO(data)).load()
    except _RefusedError as error:
        raise ValueError(
            f"{name} is a pickle that would load {error} when opened: it was not opened. "
            "Expected plain data (dicts, lists, text and numbers)"
        ) from None
    except Exception as error:  # damaged bytes raise errors of any kind
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{name} is a damaged pickle ({reason}): copy it again") from error
