"""The payload: codecs (section 5), sections (6), arithmetic (7), digests over tensors (8). Failure class `payload`."""
import hashlib
import re
import struct
from math import inf, prod, sqrt
from typing import Any, NamedTuple

import numpy as np
import zstandard
from blake3 import blake3
from numpy.typing import NDArray

from container import Container, Refused, require, text
from manifest import KNOWN_KINDS, MAX_EDITS, MAX_NAME_BYTES, is_line, is_shape

MAX_ROWS_SECTION_BYTES, MAX_WINDOW, LANES = 160 << 20, 8 << 20, 15
MAX_ROWS, MAX_COLS, MAX_TENSOR_ROWS = 1 << 24, 1 << 20, 1 << 32
PROJECTIONS, MAX_TOLERANCE = 4, 1_000_000
SIGNS = "nestpatch v1 2026-11-24 sketch signs"
CODEC = re.compile(r"raw|zstd|(planes|float)([24])\+zstd")
Words = NDArray[np.unsignedinteger[Any]]

class Dtype(NamedTuple):
    """An element type: its width in bytes, its bits as unsigned integers, and where the exponent field lies."""
    name: str
    width: int
    words: str
    exponent_shift: int
    exponent_mask: int

    def to_f32(self, bits: Words) -> NDArray[np.float32]:
        if self.name == "BF16":
            return (bits.astype(np.uint32) << 16).view(np.float32)
        return bits.view("<f2").astype(np.float32) if self.name == "F16" else bits.view("<f4")

    def round(self, values: NDArray[np.float32]) -> Words:
        """To nearest, ties to even; overflow gives infinity. There is no NaN here."""
        bits = values.view(np.uint32)
        if self.name == "BF16":
            return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(self.words)
        with np.errstate(over="ignore"):
            return values.astype("<f2").view("<u2") if self.name == "F16" else bits

    def exponent(self, bits: Words) -> NDArray[np.int64]:
        return (bits.astype(np.int64) >> self.exponent_shift) & self.exponent_mask

    def is_finite(self, bits: Words) -> bool:
        return bool((self.exponent(bits) != self.exponent_mask).all())

DTYPES = [Dtype("BF16", 2, "<u2", 7, 255), Dtype("F16", 2, "<u2", 10, 31), Dtype("F32", 4, "<u4", 23, 255)]
BY_CODE = dict(enumerate(DTYPES, 1))  # in `rows`

def decode(codec: str, stored: bytes, length: int) -> bytes:
    """Section 5: stored bytes to exactly `length` bytes of content."""
    if codec == "raw":
        return stored
    require(stored[:4] == bytes.fromhex("28b52ffd"), "payload", "not a zstd frame")
    require(not stored[4:5] or not stored[4] & 0b11011, "payload", "a dictionary id, reserved or unused bits are set")
    try:
        header = zstandard.get_frame_parameters(stored)
        require(header.content_size == length, "payload", f"the frame does not declare {length} bytes")
        require(header.window_size <= MAX_WINDOW, "payload", "the frame's window is over 8 MiB")
        data = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Refused("payload", str(error)) from error
    require(len(data) == length, "payload", f"the frame gives {len(data)} bytes, not {length}")
    if codec == "zstd":
        return data
    width = int(codec.split("+")[0][-1])
    require(length % width == 0, "payload", f"{length} bytes are no words of {width} bytes")
    words = np.frombuffer(data, np.uint8).reshape(width, -1)[::-1].T.copy().view(f"<u{width}").ravel()
    if codec.startswith("float"):
        words = words >> 1 | words << width * 8 - 1
    return words.astype(f"<u{width}").tobytes()

class Edit(NamedTuple):
    """One tensor's edit, section 6.1."""
    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    layout: int
    delta_dtype: Dtype
    rows: NDArray[np.uint32]
    clusters: NDArray[np.uint32]

    @property
    def cols(self) -> int:
        return self.shape[-1 - self.layout]

    def elements(self) -> NDArray[np.int64]:
        """Where the edited rows' elements lie in the tensor."""
        n = self.shape[-1]
        row, step = np.arange(self.cols), self.rows.astype(np.int64)[:, None]
        return step * n + row if self.layout == 0 else step // n * self.cols * n + step % n + row * n

    def digests(self, tensor: Words) -> dict[str, str]:
        """Section 8: over the tensor, and over its edited rows."""
        n = len(self.shape)
        head = text(self.name) + text(self.dtype.name) + struct.pack(f"<Q{n}Q", n, *self.shape)
        content = blake3(head + tensor.tobytes(), derive_key_context="nestpatch v1 2026-11-24 tensor content")
        head += struct.pack("<BQ", self.layout, len(self.rows)) + self.rows.astype("<u4").tobytes()
        rows = blake3(head, derive_key_context="nestpatch v1 2026-11-24 touched rows")
        return {"blake3": content.hexdigest(), "rows": rows.update(tensor[self.elements()].tobytes()).hexdigest()}

class Reader:
    """Bytes from the front; running out is an error."""
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, n: int) -> bytes:
        left = len(self.data) - self.at
        require(n <= left, "payload", f"rows: {n} bytes expected at {self.at}, {left} left")
        self.at += n
        return self.data[self.at - n : self.at]

    def integer(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def numbers(self, kind: str) -> NDArray[Any]:
        return np.frombuffer(self.take(self.integer(8) * int(kind[-1])), kind)

def read_rows(content: bytes) -> list[Edit]:
    """Section 6.1."""
    reader = Reader(content)
    count = reader.integer(8)
    require(1 <= count <= MAX_EDITS, "payload", f"rows: {count} edits")
    edits = [read_edit(reader) for _ in range(count)]
    names = [edit.name for edit in edits]
    require(names == sorted(set(names), key=str.encode), "payload", "rows: names are not strictly ascending")
    require(reader.at == len(content), "payload", "rows: bytes left over")
    require(sum(len(edit.rows) for edit in edits) <= MAX_ROWS, "payload", "rows: too many rows")
    return edits

def read_edit(reader: Reader) -> Edit:
    name, dtype, shape = reader.take(reader.integer(8)), reader.integer(1), reader.numbers("<u8").tolist()
    layout, delta_dtype = reader.integer(1), reader.integer(1)
    rows, clusters = reader.numbers("<u4"), reader.numbers("<u4")
    known = dtype in BY_CODE and delta_dtype in BY_CODE and layout in (0, 1) and is_shape(shape)
    require(known, "payload", f"rows: element type, layout or shape of {name!r}")
    decoded = name.decode("utf-8", "replace")
    right = decoded.encode() == name and is_line(decoded, 1, MAX_NAME_BYTES)
    require(right, "payload", f"rows: {name!r} is no name")
    edit = Edit(decoded, BY_CODE[dtype], tuple(shape), layout, BY_CODE[delta_dtype], rows, clusters)
    number = prod(shape) // edit.cols
    require(edit.cols <= MAX_COLS and number <= MAX_TENSOR_ROWS, "payload", f"rows: {name!r} is too large")
    ascending = len(rows) > 0 and (np.diff(rows.astype(np.int64)) > 0).all() and rows[-1] < number
    require(ascending, "payload", f"rows: indices of {name!r}")
    before = np.maximum.accumulate(np.concatenate([[-1], clusters.astype(np.int64)]))
    numbered = len(clusters) == len(rows) and (clusters <= before[:-1] + 1).all()
    require(numbered, "payload", f"rows: clusters of {name!r} are not numbered by first use")
    return edit

def read_deltas(content: bytes, edits: list[Edit]) -> list[Words]:
    """Section 6.2: for each edit, a delta for each cluster."""
    deltas, reader = [], Reader(content)
    for edit in edits:
        number = (int(edit.clusters.max()) + 1) * edit.cols
        bits = np.frombuffer(reader.take(number * edit.delta_dtype.width), edit.delta_dtype.words)
        right = edit.delta_dtype.is_finite(bits) and (bits != 1 << edit.delta_dtype.width * 8 - 1).all()
        require(right, "payload", f"deltas: {edit.name}: not finite, or negative zero")
        deltas.append(bits.reshape(-1, edit.cols))
    require(reader.at == len(content), "payload", "deltas: bytes left over")
    return deltas

Residual = list[list[tuple[NDArray[np.int64], Words]]]  # for each edit and lane: how many values a row has; the values

def read_residual(content: bytes, edits: list[Edit]) -> Residual:
    """Section 6.3."""
    cols = np.concatenate([np.full(len(edit.rows), edit.cols) for edit in edits])
    total = sum(len(edit.rows) * edit.cols * edit.dtype.width for edit in edits)
    require(len(content) == total + LANES * len(cols) * 4, "payload", "residual: length")
    halves = np.frombuffer(content[total:], "<u2").astype(np.int64).reshape(2, LANES, len(cols))
    counts = halves[0] | halves[1] << 16
    require((counts.sum(axis=0) == cols).all(), "payload", "residual: a row's counts do not add up to its length")
    residual: Residual = [[] for _ in edits]
    reader, ends = Reader(content), np.cumsum([len(edit.rows) for edit in edits])
    for lane in counts:
        for edit, lanes, of_rows in zip(edits, residual, np.split(lane, ends[:-1])):
            values = reader.take(int(of_rows.sum()) * edit.dtype.width)
            lanes.append((of_rows, np.frombuffer(values, edit.dtype.words)))
    return residual

def project(edit: Edit, rows: Words) -> NDArray[np.float32]:
    """Section 6.4: the norm of an edit's rows, then each row's projections. Accumulating adds one after the other."""
    values, totals = edit.dtype.to_f32(rows).astype(np.float64), []
    for index, row in zip(edit.rows.tolist(), values):
        seed = blake3(text(edit.name) + struct.pack("<I", index), derive_key_context=SIGNS)
        stream = np.frombuffer(seed.digest(length=(edit.cols * PROJECTIONS + 7) // 8), np.uint8)
        minus = np.unpackbits(stream, bitorder="little")[: edit.cols * PROJECTIONS].reshape(-1, PROJECTIONS)
        signed = np.where(minus == 1, -row[:, None], row[:, None])
        totals.append(np.add.accumulate(np.concatenate([np.zeros((1, PROJECTIONS)), signed]))[-1])
    norm = np.sqrt(np.add.accumulate(values.ravel() ** 2)[-1])
    with np.errstate(over="ignore"):
        return np.concatenate([[norm], *totals]).astype(np.float32)

class Sketch(NamedTuple):
    """Section 6.4: what `project` gave of each edit's rows in the base."""
    tolerance: int
    numbers: list[NDArray[np.float32]]

    def distance(self, n: int, edit: Edit, rows: Words) -> float:
        """Section 8: of a touched tensor, whose rows in a checkpoint are these."""
        norm, difference = float(self.numbers[n][0]), project(edit, rows).astype(np.float64) - self.numbers[n]
        total = float(np.add.accumulate(difference[1:] ** 2)[-1])
        if total == 0 or norm == 0:
            return 0.0 if total == 0 else inf
        return sqrt(total / PROJECTIONS) / norm

def read_sketch(content: bytes, edits: list[Edit]) -> Sketch:
    """Section 6.4."""
    sizes = [1 + PROJECTIONS * len(edit.rows) for edit in edits]
    require(len(content) == 4 + 4 * sum(sizes), "payload", "sketch: length")
    tolerance = int.from_bytes(content[:4], "little")
    require(1 <= tolerance <= MAX_TOLERANCE, "payload", f"sketch: a tolerance of {tolerance} millionths")
    numbers = np.split(np.frombuffer(content[4:], "<f4"), np.cumsum(sizes)[:-1])
    minus = [bits[0] >> 31 or (bits == 1 << 31).any() for bits in (part.view(np.uint32) for part in numbers)]
    require(all(np.isfinite(part).all() for part in numbers), "payload", "sketch: not finite")
    require(not any(minus), "payload", "sketch: a norm with a sign, or a negative zero")
    return Sketch(tolerance, numbers)

def fold(edit: Edit, old: Words, deltas: Words) -> Words:
    """Section 7: rows to new rows; one delta per row."""
    require(edit.dtype.is_finite(old), "base", f"{edit.name}: a touched row has a NaN or an infinity")
    with np.errstate(over="ignore"):
        total = edit.dtype.to_f32(old) + edit.delta_dtype.to_f32(deltas)
    new = np.where(deltas == 0, old, edit.dtype.round(total)).astype(edit.dtype.words)
    require(edit.dtype.is_finite(new), "base", f"{edit.name}: a touched row would get an infinity")
    return new

def guess_and_lanes(edit: Edit, new: Words, deltas: Words) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    with np.errstate(over="ignore"):
        difference = edit.dtype.to_f32(new) - edit.delta_dtype.to_f32(deltas)
    guess = np.where(deltas == 0, new, edit.dtype.round(difference)).astype(edit.dtype.words)
    above = edit.dtype.exponent(new) - edit.dtype.exponent(guess)
    lanes = np.where(above < 0, 0, 1 + 2 * np.minimum(above, 6) + (new & 1))
    return guess.astype(np.int64), lanes

def unfold(edit: Edit, new: Words, deltas: Words, residual: list[tuple[NDArray[np.int64], Words]]) -> Words:
    """Section 7: patched rows to the rows they were folded from."""
    require(edit.dtype.is_finite(new), "base", f"{edit.name}: a patched row has a NaN or an infinity")
    guess, lanes = guess_and_lanes(edit, new, deltas)
    value = np.zeros(new.shape, np.int64)
    for lane, (counts, values) in enumerate(residual):
        here = lanes == lane
        require((here.sum(axis=1) == counts).all(), "base", f"{edit.name}: a row is not the one that was folded")
        value[here] = values
    s = np.where(value % 2 == 0, value >> 1, -(value + 1 >> 1))
    old = ((guess + s) % (1 << edit.dtype.width * 8)).astype(edit.dtype.words)
    require(edit.dtype.is_finite(old), "base", f"{edit.name}: a restored row has a NaN or an infinity")
    return old

class Payload(NamedTuple):
    """What the sections say. `refusals`: why a reader that verifies this must not apply it (section 11)."""
    refusals: list[str]
    edits: list[Edit]
    deltas: list[Words]
    residual: Residual | None
    sketch: Sketch | None

def read_payload(container: Container, predicate: dict[str, Any]) -> Payload:
    """Section 9, step 4."""
    reader, stored = Reader(container.payload), []
    for line in predicate["sections"]:
        stored.append(reader.take(line["stored"]["length"]))
        signed = blake3(stored[-1]).hexdigest() == line["stored"]["blake3"]
        require(signed, "payload", f"{line['name']}: stored bytes are not the ones that were signed")
    refusals, contents = [f"requires {name}" for name in predicate["requires"]], {}
    for line, part in zip(predicate["sections"], stored):
        kind, expected = line["kind"], line["content"]
        if kind in KNOWN_KINDS and CODEC.fullmatch(line["codec"]):
            require(kind != "rows" or expected["length"] <= MAX_ROWS_SECTION_BYTES, "payload", "rows: too long")
            content = contents[kind] = decode(line["codec"], part, expected["length"])
            found = blake3(content).hexdigest(), hashlib.sha256(content).hexdigest()
            signed = found == (expected["blake3"], expected["sha256"])
            require(signed, "payload", f"{line['name']}: content is not the one that was signed")
        elif line["critical"]:
            refusals.append(f"critical section {line['name']} of kind {kind}, codec {line['codec']}")
    if "rows" not in contents:
        return Payload(refusals, [], [], None, None)
    edits = read_rows(contents["rows"])
    described = [(t["name"], t["dtype"], tuple(t["shape"])) for t in predicate["base"]["tensors"]]
    edited = [(edit.name, edit.dtype.name, edit.shape) for edit in edits]
    require(edited == described, "payload", "the edits are not base.tensors")
    deltas = read_deltas(contents["deltas"], edits) if "deltas" in contents else []
    residual = read_residual(contents["residual"], edits) if "residual" in contents else None
    sketch = read_sketch(contents["sketch"], edits) if "sketch" in contents else None
    return Payload(refusals, edits, deltas, residual, sketch)
