"""Vectors of sixteen numbers for Numba: loaded, used in arithmetic and stored as one value.

Numba leaves vectorisation to the compiler, which does not keep nine accumulators in registers
through a loop over neighbours. Here a `Vector` is a value in compiled functions: ``+``, ``-``,
``*``, ``/`` act on all lanes, `fma` multiplies and adds with one rounding. The compiler splits
vectors on processors with narrower registers.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model
from numba.np import arrayobj

LANES = 16


class Vector(types.Type):
    """Numba's type of sixteen numbers of one dtype."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        super().__init__(name=f"Vector({dtype})")


def lanes_type(dtype: types.Float) -> ir.VectorType:
    """LLVM's type of a vector."""
    return ir.VectorType(element_type(dtype), LANES)


def element_type(dtype: types.Float) -> ir.Type:
    """LLVM's type of one lane."""
    return ir.FloatType() if dtype == types.float32 else ir.DoubleType()


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, lanes_type(vector.dtype))


# Memory


def vector_pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Address of sixteen consecutive elements of an array.

    With ``NUMBA_BOUNDSCHECK=1``, the process ends if they are not all within the array.
    """
    fields = arrayobj.make_array(array_type)(context, builder, array)
    if numba.config.BOUNDSCHECK:
        last = builder.add(index, ir.Constant(index.type, LANES))
        before = builder.icmp_signed("<", index, ir.Constant(index.type, 0))
        beyond = builder.icmp_signed(">", last, fields.nitems)
        with builder.if_then(builder.or_(before, beyond), likely=False):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.trap"), [])
    pointer = builder.gep(fields.data, [index])
    return builder.bitcast(pointer, lanes_type(array_type.dtype).as_pointer())


def load_many(
    context: Any, builder: Any, kind: Any, array: Any, start: Any, offsets: Iterable[int]
) -> list[Any]:
    """LLVM code that loads the vectors at array[start + offset]; ``kind`` is the array's type."""
    found = []
    for offset in offsets:
        index = builder.add(start, ir.Constant(start.type, offset))
        pointer = vector_pointer(context, builder, kind, array, index)
        found.append(builder.load(pointer, align=kind.dtype.bitwidth // 8))
    return found


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """array[index : index + 16] of a contiguous array, unchecked."""
    vector = Vector(array.dtype)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = vector_pointer(context, builder, signature.args[0], args[0], args[1])
        return builder.load(pointer, align=array.dtype.bitwidth // 8)

    return vector(array, types.intp), generate


@intrinsic
def store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """array[index : index + 16] = value, unchecked."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = vector_pointer(context, builder, signature.args[0], args[0], args[1])
        builder.store(args[2], pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


def broadcast(builder: Any, number: Any) -> Any:
    """LLVM code for a vector with the number in every lane."""
    vector = ir.VectorType(number.type, LANES)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), number, _int32(0))
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), lanes)


def _int32(value: int) -> ir.Constant:
    return ir.Constant(ir.IntType(32), value)


@intrinsic
def lane(typing: Any, vector: Any, index: Any) -> Any:
    """One lane as a number."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.extract_element(args[0], builder.trunc(args[1], ir.IntType(32)))

    return vector.dtype(vector, types.intp), generate


# Arithmetic


class _SameType(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        if all(isinstance(each, Vector) and each == args[0] for each in args):
            return signature(args[0], *args)
        return None


def _register(operation: Any, method: str) -> None:
    infer_global(operation)(type(f"_{method}", (_SameType,), {}))

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return getattr(builder, method)(*args)

    arguments = [Vector] * (1 if operation is operator.neg else 2)
    lower_builtin(operation, *arguments)(generate)


_register(operator.add, "fadd")
_register(operator.sub, "fsub")
_register(operator.mul, "fmul")
_register(operator.truediv, "fdiv")
_register(operator.neg, "fneg")


def call_lanewise(builder: Any, name: str, *args: Any) -> Any:
    """Call LLVM's intrinsic function of that name on vectors of one type."""
    kind = args[0].type
    suffix = "f32" if kind.element == ir.FloatType() else "f64"
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(kind, [kind] * len(args)),
        f"llvm.{name}.v{LANES}{suffix}",
    )
    return builder.call(function, args)


def unrolled(result: Callable[..., types.Type]) -> Callable[..., Any]:
    """Decorator that makes an intrinsic function of vectors and tuples of vectors.

    The decorated function takes LLVM's builder and the arguments, with tuples as lists of vectors;
    ``result`` maps the types of the arguments to the type of the result.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        def typed(typing: Any, *kinds: Any) -> Any:
            kind = result(*kinds)

            def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                values = [
                    cgutils.unpack_tuple(builder, arg) if isinstance(k, types.BaseTuple) else arg
                    for k, arg in zip(kinds, args, strict=True)
                ]
                found = function(builder, *values)
                tuples = isinstance(kind, types.BaseTuple)
                return context.make_tuple(builder, kind, found) if tuples else found

            return kind(*kinds), generate

        functools.update_wrapper(typed, function)
        # Numba needs the names of the arguments.
        given = inspect.signature(function)
        typed.__signature__ = given.replace(return_annotation=Any)  # type: ignore[attr-defined]
        return intrinsic(typed)

    return decorate


def from_type(value: Callable[[Any], int]) -> Any:
    """An intrinsic function that computes an integer from the type of its argument."""

    def number(typing: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return context.get_constant(types.intp, value(x))

        return types.intp(x), generate

    return intrinsic(number)


def _of_one(name: str) -> Any:
    return unrolled(lambda x: x)(lambda builder, x: call_lanewise(builder, name, x))


def _of_two(name: str) -> Any:
    return unrolled(lambda x, y: x)(lambda builder, x, y: call_lanewise(builder, name, x, y))


fma = unrolled(lambda x, y, z: x)(
    lambda builder, x, y, z: call_lanewise(builder, "fma", x, y, z)  # x y + z, rounded once
)
minimum = _of_two("minnum")
maximum = _of_two("maxnum")
absolute = _of_one("fabs")
log = _of_one("log")


@unrolled(Vector)
def splat(builder: Any, number: Any) -> Any:
    """The number, float32 or float64, in every lane."""
    return broadcast(builder, number)


@unrolled(lambda vector: vector.dtype)
def total(builder: Any, vector: Any) -> Any:
    """Sum of the lanes, in a fixed order (a tree)."""
    width = LANES
    while width > 1:
        width //= 2
        undefined = ir.Constant(vector.type, ir.Undefined)
        index = ir.VectorType(ir.IntType(32), width)
        low = ir.Constant(index, list(range(width)))
        high = ir.Constant(index, list(range(width, 2 * width)))
        vector = builder.fadd(
            builder.shuffle_vector(vector, undefined, low),
            builder.shuffle_vector(vector, undefined, high),
        )
    return builder.extract_element(vector, _int32(0))


@intrinsic
def like(typing: Any, vector: Any, number: Any) -> Any:
    """A vector of the same dtype, with the number, of any type, in every lane."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        cast = context.cast(builder, args[1], signature.args[1], vector.dtype)
        return broadcast(builder, cast)

    return vector(vector, number), generate


LN2_HIGH = 0.693359375
"""ln 2 with few enough digits that its integer multiples are exact; `LN2_LOW` is the rest."""
LN2_LOW = -2.121944400546905827679e-4  # with more digits than math.log(2) - LN2_HIGH has


@unrolled(lambda vector: vector)
def exp(builder: Any, vector: Any) -> Any:
    """e^x, accurate to one or two units in the last place.

    With x = k ln 2 + r and |r| <= ln 2 / 2, e^x = 2^k e^r, where e^r is a Taylor series. Arguments
    are clipped to the range of normal numbers.
    """
    kind = vector.type
    single = kind.element == ir.FloatType()
    lowest, highest, terms = (-87.0, 88.0, 8) if single else (-708.0, 709.0, 14)
    mantissa, bias = (23, 127) if single else (52, 1023)
    whole = ir.VectorType(ir.IntType(32 if single else 64), LANES)

    def constant(value: float) -> ir.Constant:
        return ir.Constant(kind, [value] * LANES)

    x = call_lanewise(builder, "maxnum", vector, constant(lowest))
    x = call_lanewise(builder, "minnum", x, constant(highest))
    k = call_lanewise(builder, "rint", builder.fmul(x, constant(1 / math.log(2))))
    r = call_lanewise(builder, "fma", k, constant(-LN2_HIGH), x)
    r = call_lanewise(builder, "fma", k, constant(-LN2_LOW), r)
    series = constant(1 / math.factorial(terms - 1))
    for n in reversed(range(terms - 1)):
        series = call_lanewise(builder, "fma", series, r, constant(1 / math.factorial(n)))
    exponent = builder.add(builder.fptosi(k, whole), ir.Constant(whole, [bias] * LANES))
    power = builder.shl(exponent, ir.Constant(whole, [mantissa] * LANES))
    return builder.fmul(series, builder.bitcast(power, kind))
