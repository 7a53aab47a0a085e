"""Functions compiled by numba, and what it lacks: unaligned words at raw addresses, logical shifts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_INT64 = ir.IntType(64)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile without the GIL; cached on disk unless neither the package's nor the user's folder is writable."""
    try:
        kernel: Callable[..., Any] = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:
        kernel = numba.njit(nogil=True, error_model="numpy")(function)
    return kernel


def _load(bits: int) -> Any:
    """`load(address)`: an unaligned little-endian word, as int64 without sign."""

    @intrinsic
    def load(typing_context, address):  # type: ignore[no-untyped-def]
        def build(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            word = builder.load(builder.inttoptr(arguments[0], ir.IntType(bits).as_pointer()), align=1)
            return word if bits == 64 else builder.zext(word, _INT64)

        return types.int64(types.int64), build

    return load


def _store(bits: int, times: int = 1) -> Any:
    """`store(address, value)`: the low bits of an int64, or several copies of them side by side."""

    @intrinsic
    def store(typing_context, address, value):  # type: ignore[no-untyped-def]
        def build(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            word = arguments[1] if bits == 64 else builder.trunc(arguments[1], ir.IntType(bits))
            if times > 1:
                words = ir.Constant(ir.VectorType(word.type, times), ir.Undefined)
                for place in range(times):
                    words = builder.insert_element(words, word, ir.Constant(ir.IntType(32), place))
                word = words
            builder.store(word, builder.inttoptr(arguments[0], word.type.as_pointer()), align=1)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), build

    return store


def _shift(direction: str) -> Any:
    """`shift(value, places)`: logical, by the low six bits of `places`, which is one instruction."""

    @intrinsic
    def shift(typing_context, value, places):  # type: ignore[no-untyped-def]
        def build(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return getattr(builder, direction)(arguments[0], builder.and_(arguments[1], _INT64(63)))

        return types.int64(types.int64, types.int64), build

    return shift


load8, load16, load32, load64 = (_load(bits) for bits in (8, 16, 32, 64))
store8, store32, store64, store256 = _store(8), _store(32), _store(64), _store(64, times=4)
shift_left, shift_right = _shift("shl"), _shift("lshr")
