"""Weights in the fewest bytes from which ONNX Runtime itself restores them, once, when it loads the file.

Every form is made of standard operations on constants. ONNX Runtime folds those before it fuses quantised layers, so
that a 3-bit or a sparse layer runs in the same integer kernel as an 8-bit one. No custom operator, no custom loader.

    8 bits   the codes
    4, 2     INT4 / INT2 tensor -> Cast
    6        INT4 * 4 + UINT2
    5, 3     INT4 or INT2 * 2 + bit plane
    7        INT4 * 8 + UINT2 * 2 + bit plane
    sparse   bit plane of the places that are not zero, and the other values in any form above
    zeros    their shape alone

For runtimes without 2-bit tensors and bitwise operators both kinds of planes are looked up in a table, four bits at a time.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from autocompress.runtimes.onnx_slim import free_name
from autocompress.tables import Form

Codes = NDArray[Any]

# How a code of so many bits is cut into planes, most significant first; the first one is signed.
PLANES: dict[int, tuple[int, ...]] = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}

# A sparse form below this share of zeros is never smaller; do not even try it.
_FEWEST_ZEROS = 0.05


def pack(model: onnx.ModelProto, *, lookup: bool = False) -> onnx.ModelProto:
    """`model` with every weight tensor in its smallest form: int8 codes by the bits they need, any weights by their zeros.

    The restored weights are equal, bit for bit. With `lookup` nothing narrower than four bits is asked of the runtime.
    """
    packed = onnx.ModelProto()
    packed.CopyFrom(model)
    graph = packed.graph
    tensors, nodes = list(graph.initializer), list(graph.node)
    del graph.initializer[:], graph.node[:]
    writer = _Writer(lookup=lookup, taken=frozenset(value.name for value in (*graph.input, *graph.output)))
    for tensor in tensors:
        if not (_is_codes(tensor) or _is_weight(tensor)):
            writer.tensors.append(tensor)
            continue
        writer = min((written.writer for written in _written(tensor, writer)), key=lambda writer: writer.size())
    graph.initializer.extend(writer.tensors)
    graph.node.extend([*writer.nodes, *nodes])
    return packed


def forms(weights: Codes) -> tuple[Form, ...]:
    """The ways to store a tensor like `weights`: floats or int8 codes of shape (out, in, ...).

    Those that are smaller than the others in tensors of some size and some share of zeros. Forms of zeros are among them
    when `weights` has some. What several tensors share is not counted.
    """
    tensor, shared = numpy_helper.from_array(weights, "w"), _with_shared_constants()
    nonzeros = int(np.count_nonzero(weights))
    useful: list[Form] = []
    for written in _written(tensor, shared):
        growing = written.number * weights.size + written.nonzero * nonzeros
        fixed = max(0.0, written.writer.size() - shared.size() - growing)
        form = Form(fixed=fixed, number=written.number, nonzero=written.nonzero)
        if not any(_never_larger(other, form) for other in useful):
            useful = [*(other for other in useful if not _never_larger(form, other)), form]
    return tuple(useful)


def bits_needed(codes: Codes) -> int:
    """The least width, 2..8, whose signed integers hold all of `codes`."""
    low, high = (int(codes.min()), int(codes.max())) if codes.size else (0, 0)
    return next(bits for bits in range(2, 9) if -(2 ** (bits - 1)) <= low and high < 2 ** (bits - 1))


@dataclass
class _Writer:
    """Tensors and nodes under construction; constants that several weights need are written once."""

    tensors: list[TensorProto] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    shared: dict[bytes, str] = field(default_factory=dict)
    names: int = 0
    lookup: bool = False
    taken: frozenset[str] = frozenset()

    def copy(self) -> "_Writer":
        return _Writer([*self.tensors], [*self.nodes], {**self.shared}, self.names, self.lookup, self.taken)

    def size(self) -> int:
        # Two bytes around each field: its key and its length.
        sizes: list[int] = [part.ByteSize() + 2 for part in (*self.tensors, *self.nodes)]  # type: ignore[attr-defined]
        return sum(sizes)

    def name(self) -> str:
        self.names += 1
        return free_name(f"p{self.names - 1:x}", self.taken)

    def constant(self, value: NDArray[Any]) -> str:
        key = str(value.dtype).encode() + str(value.shape).encode() + value.tobytes()
        if key not in self.shared:
            self.shared[key] = self.name()
            self.tensors.append(numpy_helper.from_array(value, self.shared[key]))
        return self.shared[key]

    def tensor(self, kind: int, shape: tuple[int, ...], content: bytes) -> str:
        tensor = TensorProto(name=self.name(), data_type=kind, dims=shape, raw_data=content)
        self.tensors.append(tensor)
        return tensor.name

    def call(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        name = output or self.name()
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name


def _is_codes(tensor: TensorProto) -> bool:
    return tensor.data_type == TensorProto.INT8 and len(tensor.dims) >= 2


def _is_weight(tensor: TensorProto) -> bool:
    return tensor.data_type == TensorProto.FLOAT and len(tensor.dims) >= 2


@dataclass(frozen=True)
class _Written:
    """A writer that holds a tensor in one of its forms: so many bytes a number, so many more where it is not zero."""

    writer: _Writer
    number: float
    nonzero: float


def _written(tensor: TensorProto, writer: _Writer) -> Iterator[_Written]:
    content = numpy_helper.to_array(tensor)
    plain = writer.copy()
    plain.tensors.append(tensor)
    yield _Written(plain, content.itemsize, 0)
    widths = [bits for bits in PLANES if bits_needed(content) <= bits < 8] if _is_codes(tensor) else []
    for bits in widths:
        dense = writer.copy()
        _dense(dense, content, bits, tensor.name)
        yield _Written(dense, bits / 8, 0)
    if (content == 0).mean() < _FEWEST_ZEROS:
        return
    for bits_or_plain in [*widths, None]:
        sparse = writer.copy()
        _sparse(sparse, content, bits_or_plain, tensor.name)
        yield _Written(sparse, 1 / 8, content.itemsize if bits_or_plain is None else bits_or_plain / 8)


def _with_shared_constants() -> _Writer:
    """A writer to which the constants that all tensors of a network share are no longer news."""
    writer, little = _Writer(), np.ones((1, 1), dtype=np.int8)
    for bits in (bits for bits in PLANES if bits < 8):
        _dense(writer, little, bits, "w")
        _sparse(writer, little, bits, "w")
    return writer


def _never_larger(form: Form, other: Form) -> bool:
    return (
        form.fixed <= other.fixed and form.number <= other.number and form.number + form.nonzero <= other.number + other.nonzero
    )


def _dense(writer: _Writer, codes: Codes, bits: int, output: str) -> None:
    if len(PLANES[bits]) == 1:
        writer.call("Cast", _plane(writer, codes, bits, signed=True), output=output, to=TensorProto.INT8)
        return
    writer.call("Cast", _floats(writer, codes, bits), output=output, to=TensorProto.INT8)


def _floats(writer: _Writer, codes: Codes, bits: int) -> str:
    """The codes as a float tensor: every sum and product of such small integers is exact."""
    total, left = "", bits
    kind = TensorProto.INT32 if writer.lookup else TensorProto.FLOAT
    for width in PLANES[bits]:
        left -= width
        part = codes.astype(np.int16) >> left
        if not total:
            plane = writer.call("Cast", _plane(writer, part, width, signed=True), to=kind)
        elif width == 1:
            plane = _bits(writer, part & 1, kind)
        else:
            plane = writer.call("Cast", _plane(writer, part & (2**width - 1), width, signed=False), to=kind)
        if left:
            plane = writer.call(
                "Mul", plane, writer.constant(np.array(2**left, dtype=np.int32 if writer.lookup else np.float32))
            )
        total = writer.call("Add", total, plane) if total else plane
    return total


def _plane(writer: _Writer, values: Codes, width: int, *, signed: bool) -> str:
    """A tensor of native 2- or 4-bit integers, `8 / width` to the byte, least significant first."""
    kinds = {
        (4, True): TensorProto.INT4,
        (4, False): TensorProto.UINT4,
        (2, True): TensorProto.INT2,
        (2, False): TensorProto.UINT2,
    }
    if width < 4 and writer.lookup:
        return _looked_up(writer, values, width, signed=signed)
    return writer.tensor(kinds[width, signed], values.shape, _packed(values, width))


def _packed(values: Codes, width: int) -> bytes:
    to_a_byte = 8 // width
    flat = (values.astype(np.int16) & (2**width - 1)).astype(np.uint8).ravel()
    padded = np.zeros(-(-flat.size // to_a_byte) * to_a_byte, dtype=np.uint8)
    padded[: flat.size] = flat
    shifted = padded.reshape(-1, to_a_byte) << (np.arange(to_a_byte, dtype=np.uint8) * width)
    content: bytes = np.bitwise_or.reduce(shifted, axis=1).astype(np.uint8).tobytes()
    return content


def _looked_up(writer: _Writer, values: Codes, width: int, *, signed: bool) -> str:
    """`values` as an int32 tensor of the same shape: every four bits stored pick a row of a table of what they stand for."""
    to_a_row = 4 // width
    fields = np.arange(16)[:, None] >> (np.arange(to_a_row) * width) & (2**width - 1)
    table = np.where(fields >= 2 ** (width - 1), fields - 2**width, fields) if signed else fields
    rows = -(-values.size // to_a_row)
    places = writer.call("Cast", writer.tensor(TensorProto.UINT4, (rows,), _packed(values, width)), to=TensorProto.INT32)
    found = writer.call("Gather", writer.constant(table.astype(np.int32)), places)
    return _reshaped(writer, found, values.shape, padded=rows * to_a_row > values.size)


def _reshaped(writer: _Writer, found: str, shape: tuple[int, ...], *, padded: bool) -> str:
    if padded:
        row = writer.call("Reshape", found, writer.constant(np.array([-1], dtype=np.int64)))
        begin, end = np.array([0], dtype=np.int64), np.array([math.prod(shape)], dtype=np.int64)
        found = writer.call("Slice", row, writer.constant(begin), writer.constant(end))
    return writer.call("Reshape", found, writer.constant(np.array(shape, dtype=np.int64)))


def _bits(writer: _Writer, flags: Codes, kind: int) -> str:
    """`flags` (0 or 1) as a tensor of type `kind` and the same shape, stored eight to the byte."""
    if writer.lookup:
        return _looked_up(writer, flags, 1, signed=False)
    content = np.packbits(flags.astype(bool).ravel(), bitorder="little")
    stored = writer.constant(content.reshape(-1, 1))
    places = writer.constant(np.left_shift(np.uint8(1), np.arange(8, dtype=np.uint8)))
    found = writer.call("Cast", writer.call("BitwiseAnd", stored, places), to=TensorProto.BOOL)
    unpacked = writer.call("Cast", found, to=kind)
    return _reshaped(writer, unpacked, flags.shape, padded=flags.size % 8 > 0)


def _sparse(writer: _Writer, content: Codes, bits: int | None, output: str) -> None:
    flat = content.ravel()
    if not flat.any():  # OpenVINO refuses to scatter nothing
        zero = numpy_helper.from_array(np.zeros(1, dtype=content.dtype))
        shape = writer.constant(np.array(content.shape, dtype=np.int64))
        writer.call("ConstantOfShape", shape, output=output, value=zero)
        return
    values, present = flat[flat != 0], _bits(writer, flat != 0, TensorProto.INT32)
    if writer.lookup:
        restored = _scattered(writer, values, bits, present, flat.size)
    else:
        restored = _gathered(writer, values, bits, present)
    writer.call("Reshape", restored, writer.constant(np.array(content.shape, dtype=np.int64)), output=output)


def _gathered(writer: _Writer, values: Codes, bits: int | None, present: str) -> str:
    """Place 0 of the values is a zero; every weight picks its value by counting the non-zeros up to it."""
    stored = _stored(writer, np.concatenate([np.zeros(1, dtype=values.dtype), values]), bits, TensorProto.INT8)
    count = writer.call("CumSum", present, writer.constant(np.array(0, dtype=np.int64)))
    return writer.call("Gather", stored, writer.call("Mul", count, present))


def _scattered(writer: _Writer, values: Codes, bits: int | None, present: str, size: int) -> str:
    """Every value goes to its place among zeros. OpenVINO folds this, of 32 bits, and no CumSum."""
    is_codes = values.dtype == np.int8
    stored = _stored(writer, values, bits, TensorProto.INT32)
    if is_codes and bits is None:
        stored = writer.call("Cast", stored, to=TensorProto.INT32)
    zero = numpy_helper.from_array(np.zeros(1, dtype=np.int32 if is_codes else values.dtype))
    zeros = writer.call("ConstantOfShape", writer.constant(np.array([size], dtype=np.int64)), value=zero)
    places = writer.call("Reshape", writer.call("NonZero", present), writer.constant(np.array([-1], dtype=np.int64)))
    scattered = writer.call("ScatterElements", zeros, places, stored)
    return writer.call("Cast", scattered, to=TensorProto.INT8) if is_codes else scattered


def _stored(writer: _Writer, values: Codes, bits: int | None, kind: int) -> str:
    """`values` as they are when `bits` is None, else so many bits each, as a tensor of type `kind`."""
    if bits is None:
        return writer.constant(values)
    if len(PLANES[bits]) == 1:
        return writer.call("Cast", _plane(writer, values, bits, signed=True), to=kind)
    return writer.call("Cast", _floats(writer, values, bits), to=kind)
