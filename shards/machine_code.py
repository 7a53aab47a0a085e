"""Functions compiled by numba, and what it lacks: unaligned words at raw addresses, logical shifts, calls by
address, the CRC32C instruction, half precision."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

_INT8, _INT16, _INT32, _INT64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))

_CRC32C = {
    "x86_64": ("sse4.2", "llvm.x86.sse42.crc32.64.64", _INT64, "llvm.x86.sse42.crc32.32.8", _INT8),
    "aarch64": ("crc", "llvm.aarch64.crc32cx", _INT32, "llvm.aarch64.crc32cb", _INT32),
}
"""Machine to: the feature it takes, the instruction for eight bytes with the type of its state, and for one byte with
the type of that byte."""


def has_crc32c() -> bool:
    """Whether this processor has the instruction that `crc32c_word` and `crc32c_byte` are."""
    wanted = _CRC32C.get(platform.machine())
    try:
        return wanted is not None and bool(binding.get_host_cpu_features().get(wanted[0]))
    except RuntimeError:  # llvmlite cannot tell
        return False


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


@intrinsic
def crc32c_word(typing_context, state, address):  # type: ignore[no-untyped-def]
    """`crc32c_word(state, address)`: the state after eight more bytes."""

    def build(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        _, name, kind, _, _ = _CRC32C[platform.machine()]
        function = builder.module.declare_intrinsic(name, fnty=ir.FunctionType(kind, [kind, _INT64]))
        word = builder.load(builder.inttoptr(arguments[1], _INT64.as_pointer()), align=1)
        before = arguments[0] if kind is _INT64 else builder.trunc(arguments[0], kind)
        after = builder.call(function, [before, word])
        return after if kind is _INT64 else builder.zext(after, _INT64)

    return types.int64(types.int64, types.int64), build


@intrinsic
def crc32c_byte(typing_context, state, address):  # type: ignore[no-untyped-def]
    """`crc32c_byte(state, address)`: the state after one more byte."""

    def build(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        _, _, _, name, kind = _CRC32C[platform.machine()]
        function = builder.module.declare_intrinsic(name, fnty=ir.FunctionType(_INT32, [_INT32, kind]))
        byte = builder.load(builder.inttoptr(arguments[1], _INT8.as_pointer()))
        byte = byte if kind is _INT8 else builder.zext(byte, kind)
        return builder.zext(builder.call(function, [builder.trunc(arguments[0], _INT32), byte]), _INT64)

    return types.int64(types.int64, types.int64), build


@intrinsic
def call5(typing_context, function, a, b, c, d, e):  # type: ignore[no-untyped-def]
    """`call5(function, a, b, c, d, e)`: call a C function of five words at an address."""

    def build(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        kind = ir.FunctionType(_INT64, [_INT64] * 5)
        return builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])

    return types.int64(*[types.int64] * 6), build


@intrinsic
def half_bits(typing_context, value):  # type: ignore[no-untyped-def]
    """`half_bits(x)`: a float32 rounded to float16 (ties to even), as its 16 bits."""

    def build(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), _INT16)

    return types.uint16(types.float32), build


@intrinsic
def float_bits(typing_context, value):  # type: ignore[no-untyped-def]
    """`float_bits(x)`: the 32 bits of a float32."""

    def build(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.bitcast(arguments[0], _INT32)

    return types.uint32(types.float32), build


LANES = 16
"""Values that the functions of `scaled_block` turn at a time."""


def scaled_block(bits: int, kind: str) -> Any:
    """Build `turn(source, gain, target)`: 16 integers of `bits` bits times 16 float32, as float16 or bfloat16.

    The three are addresses. Rounded to nearest, ties to even; products must be finite.
    """

    @intrinsic
    def turn(typing_context, source, gain, target):  # type: ignore[no-untyped-def]
        def build(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            def vector(kind: Any) -> Any:
                return ir.VectorType(kind, LANES)

            def load(address: Any, kind: Any) -> Any:
                return builder.load(builder.inttoptr(address, vector(kind).as_pointer()), align=1)

            whole = builder.sext(load(arguments[0], ir.IntType(bits)), vector(_INT32))
            value = builder.fmul(builder.sitofp(whole, vector(ir.FloatType())), load(arguments[1], ir.FloatType()))
            if kind == "float16":
                result = builder.bitcast(builder.fptrunc(value, vector(ir.HalfType())), vector(_INT16))
            else:
                raw = builder.bitcast(value, vector(_INT32))

                def all_of(number: int) -> Any:
                    return ir.Constant(vector(_INT32), [number] * LANES)

                odd = builder.and_(builder.lshr(raw, all_of(16)), all_of(1))
                rounded = builder.add(builder.add(raw, all_of(0x7FFF)), odd)
                result = builder.trunc(builder.lshr(rounded, all_of(16)), vector(_INT16))
            builder.store(result, builder.inttoptr(arguments[2], result.type.as_pointer()), align=1)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), build

    return turn
