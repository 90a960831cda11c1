"""Elementwise code of losses and activations, called by its address."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


def _call(builder, address, result, arguments):
    """Call code that takes ``arguments`` at an integer ``address``."""
    function = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(builder.inttoptr(address, function.as_pointer()), arguments)


@intrinsic
def call_rows(typing_context, address, z, a, slope, count):
    """Write ``phi(z)`` to ``a`` and ``phi'(z)`` to ``slope``; these are addresses of ``count`` numbers."""

    def codegen(context, builder, signature, args):
        _call(builder, args[0], ir.VoidType(), args[1:])
        return context.get_dummy_value()

    return types.void(address, z, a, slope, count), codegen


@intrinsic
def call_scalar(typing_context, address, f, y):
    """A loss or residual at ``f`` and ``y``, in double precision."""

    def codegen(context, builder, signature, args):
        return _call(builder, args[0], ir.DoubleType(), args[1:])

    return types.float64(address, types.float64, types.float64), codegen
