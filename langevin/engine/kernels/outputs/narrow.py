"""Products of features with the few columns of a head, on rows that are read where they lie.

BLAS needs rows at equal distances, which rows of a batch do not have. The inner loops are written in LLVM's
vectors, so that their sums do not depend on what a compiler makes of them.
"""

# pyright: reportCallIssue=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

_FEATURES = binding.get_host_cpu_features()
_WIDE = bool(_FEATURES.get("avx512f"))
VECTOR_BYTES = 64 if _WIDE else 32 if _FEATURES.get("avx") else 16
# columns at once: with four rows or vectors of each, as many sums as there are registers for
COLUMNS = 5 if _WIDE or _FEATURES.get("neon") else 2
ROWS = 4
# bytes of vectors whose sums are kept in registers together
TILE_BYTES = 4 * VECTOR_BYTES
# bytes of rows that are multiplied at once: those of a head stay in the first cache
STRIP_BYTES = 4096

# a product and its sum in one instruction where there is one
_FUSED = ("contract",)
_I32, _I64 = ir.IntType(32), ir.IntType(64)


@intrinsic
def add_outputs(typing_context, like, columns, rows, offset, head, stride, out, out_stride, size, more):
    """``F[:, :4] = V A^T``, or add to it if ``more``, for four rows of features and some columns of a head.

    Parameters
    ----------
    like : array
        Of the numbers' type.
    columns : int
        At most `COLUMNS`: rows of ``V`` and ``F``, which are ``stride`` and ``out_stride`` bytes apart.
    rows : int
        Address of four addresses of rows, of whose ``size`` bytes from ``offset`` on the product is taken.
    head, out : int
        Addresses of ``V``, from the same neuron on, and of ``F``.
    """
    return _switch(_outputs, like, columns)


@intrinsic
def add_gradient(typing_context, like, columns, rows, offset, head, stride, out, out_stride, count, more):
    """``G = R A``, or add to it if ``more``, on `TILE_BYTES` of ``count`` rows; see `add_outputs`.

    ``R`` and ``G`` have a row per column of the head.
    """
    return _switch(_gradient, like, columns, TILE_BYTES // VECTOR_BYTES)


@intrinsic
def add_gradient_edge(
    typing_context, like, columns, rows, offset, head, stride, out, out_stride, count, more
):
    """`add_gradient` on one vector."""
    return _switch(_gradient, like, columns, 1)


def _switch(build: Any, like: Any, columns: Any, *shape: int) -> Any:
    """A call of the code for as many columns as there are."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = _vector(like.dtype)
        end = builder.append_basic_block("end")
        switch = builder.switch(args[1], end)
        for count in range(1, COLUMNS + 1):
            block = builder.append_basic_block(f"columns{count}")
            switch.add_case(ir.Constant(args[1].type, count), block)
            with builder.goto_block(block):
                builder.call(_function(builder.module, build, vector, count, *shape), args[2:])
                builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(like, *[types.int64] * 9), codegen


def _vector(number: Any) -> ir.VectorType:
    double = number == types.float64
    return ir.VectorType(ir.DoubleType() if double else ir.FloatType(), VECTOR_BYTES // (8 if double else 4))


def _function(module: ir.Module, build: Any, vector: ir.VectorType, *shape: int) -> ir.Function:
    """The function of a module that `build` writes, with eight integers as arguments."""
    name = "_".join(map(str, ("langevin", build.__name__, vector.element.intrinsic_name, *shape)))
    if name not in module.globals:
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [_I64] * 8), name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        build(_Writer(function, vector), *function.args, *shape)
    return module.globals[name]


class _Writer(ir.IRBuilder):
    """Writes a function of one loop over vectors."""

    def __init__(self, function: ir.Function, vector: ir.VectorType) -> None:
        super().__init__(function.append_basic_block("entry"))
        self.vector, self.bytes = vector, 8 if isinstance(vector.element, ir.DoubleType) else 4
        self.zero = ir.Constant(vector, [0.0] * vector.count)

    def at(self, start: Any, stride: Any, index: int) -> Any:
        return self.add(start, self.mul(stride, _I64(index)))

    def read(self, address: Any, kind: Any) -> Any:
        return self.load(self.inttoptr(address, kind.as_pointer()), align=self.bytes)

    def write(self, value: Any, address: Any) -> None:
        self.store(value, self.inttoptr(address, value.type.as_pointer()), align=self.bytes)

    def row(self, rows: Any, index: Any, offset: Any) -> Any:
        """Address at an ``offset`` in a row, from the address of a list of rows."""
        return self.add(self.read(self.add(rows, self.shl(index, _I64(3))), _I64), offset)

    def multiply_add(self, x: Any, y: Any, z: Any) -> Any:
        return self.fadd(self.fmul(x, y, flags=_FUSED), z, flags=_FUSED)

    def shuffle(self, x: Any, y: Any, lanes: Sequence[int]) -> Any:
        return self.shuffle_vector(x, y, ir.Constant(ir.VectorType(_I32, len(lanes)), list(lanes)))

    def spread(self, number: Any) -> Any:
        """A vector of equal numbers."""
        none = ir.Constant(self.vector, ir.Undefined)
        return self.shuffle(self.insert_element(none, number, _I32(0)), none, [0] * self.vector.count)

    def repeat(self, stop: Any, step: int, sums: list[Any], body: Any) -> list[Any]:
        """Replace sums by ``body(i, sums)`` for ``i = 0, step, ...`` below ``stop``, and once at least."""
        entry, loop, end = self.block, self.append_basic_block("loop"), self.append_basic_block("end")
        self.branch(loop)
        self.position_at_end(loop)
        index = self.phi(_I64)
        before = [self.phi(self.vector) for _ in sums]
        after = body(index, before)
        following = self.add(index, _I64(step))
        for phi, first, value in zip([index, *before], [_I64(0), *sums], [following, *after], strict=True):
            phi.add_incoming(first, entry)
            phi.add_incoming(value, loop)
        self.cbranch(self.icmp_signed("<", following, stop), loop, end)
        self.position_at_end(end)
        return after

    def totals(self, sums: list[Any]) -> Any:
        """The sums of the lanes of `ROWS` vectors, as a vector."""
        length = self.vector.count
        # runs of `length` lanes belong to one sum each; their halves are added until one lane is left
        while length > 1:
            one = len(sums) == 1
            pairs = [(sums[0], sums[0])] if one else list(zip(sums[::2], sums[1::2], strict=True))
            lanes = range(length * ROWS if one else 2 * self.vector.count)
            first, second = ([i for i in lanes if (i // (length // 2)) % 2 == half] for half in (0, 1))
            sums = [self.fadd(self.shuffle(x, y, first), self.shuffle(x, y, second)) for x, y in pairs]
            length //= 2
        return sums[0] if len(sums) == 1 else self.shuffle(*sums, range(ROWS))


def _outputs(
    w: _Writer,
    rows: Any,
    offset: Any,
    head: Any,
    stride: Any,
    out: Any,
    out_stride: Any,
    size: Any,
    more: Any,
    columns: int,
) -> None:
    lines = [w.row(rows, _I64(i), offset) for i in range(ROWS)]
    heads = [w.at(head, stride, k) for k in range(columns)]

    def body(i: Any, sums: list[Any]) -> list[Any]:
        a = [w.read(w.add(line, i), w.vector) for line in lines]
        v = [w.read(w.add(line, i), w.vector) for line in heads]
        return [w.multiply_add(a[j % ROWS], v[j // ROWS], sums[j]) for j in range(len(sums))]

    sums = w.repeat(size, VECTOR_BYTES, [w.zero] * (ROWS * columns), body)
    again = w.icmp_signed("!=", more, _I64(0))
    for k in range(columns):
        total, at = w.totals(sums[ROWS * k : ROWS * (k + 1)]), w.at(out, out_stride, k)
        none = ir.Constant(total.type, [0.0] * ROWS)
        w.write(w.fadd(total, w.select(again, w.read(at, total.type), none)), at)
    w.ret_void()


def _gradient(
    w: _Writer,
    rows: Any,
    offset: Any,
    head: Any,
    stride: Any,
    out: Any,
    out_stride: Any,
    count: Any,
    more: Any,
    columns: int,
    vectors: int,
) -> None:
    places = [
        w.add(w.at(out, out_stride, k), _I64(VECTOR_BYTES * j))
        for k in range(columns)
        for j in range(vectors)
    ]
    heads = [w.at(head, stride, k) for k in range(columns)]

    def body(i: Any, sums: list[Any]) -> list[Any]:
        line, after = w.row(rows, i, offset), w.mul(i, _I64(w.bytes))
        a = [w.read(w.add(line, _I64(VECTOR_BYTES * j)), w.vector) for j in range(vectors)]
        r = [w.spread(w.read(w.add(at, after), w.vector.element)) for at in heads]
        return [w.multiply_add(a[j % vectors], r[j // vectors], sums[j]) for j in range(len(sums))]

    again = w.icmp_signed("!=", more, _I64(0))
    start = [w.select(again, w.read(place, w.vector), w.zero) for place in places]
    for value, place in zip(w.repeat(count, 1, start, body), places, strict=True):
        w.write(value, place)
    w.ret_void()
