"""Writes ../../fixtures/vectors: small files that each break one rule of ../format.md, or that all readers must accept.

cases.json says what, in the language of README.md, "The cases"; this carries it out. Nothing here depends on time or
chance: `vectors.py` writes the same bytes again, `vectors.py --check` compares them."""
import hashlib
import json
import struct
import sys
from pathlib import Path
from typing import Any, Callable

import numpy as np
import zstandard
from blake3 import blake3

from container import BASE, MAGIC, L, Point, add, challenge, decode_point, encode_point, multiply
from container import key_id, signed_message, text
from manifest import compact, content_root
from payload import LANES, Edit, Words, fold, guess_and_lanes, project, read_deltas, read_rows

FOLDER = Path(__file__).resolve().parents[2] / "fixtures" / "vectors"
Case = dict[str, Any]
CHANGES: dict[str, Callable[[Any], Any]] = {
    "upper case": str.upper, "other first digit": lambda v: ("1" if v[0] == "0" else "0") + v[1:],
    "reversed": lambda v: v[::-1], "first again": lambda v: v + v[:1],
    "one more": lambda v: v + 1, "one less": lambda v: v - 1,
}

def expand(value: Any) -> Any:
    """Writes out $repeat, $object and $each."""
    if not isinstance(value, dict):
        return [expand(item) for item in value] if isinstance(value, list) else value
    if "$repeat" in value:
        return value["$repeat"][0] * value["$repeat"][1]
    if "$object" in value:
        return dict(expand(value["$object"]))
    if "$each" in value:
        item, first, end, *more = value["$each"]
        form = json.dumps(item)
        forms = [(f"{n}", f"{n:02x}", hashlib.sha256(bytes([n & 255])).hexdigest()) for n in range(first, end)]
        return [json.loads(form.replace("%d", d).replace("%x", x).replace("%s", s)) for d, x, s in forms] + more
    return {key: expand(inner) for key, inner in value.items()}

def from_hex(text: str) -> bytes:
    """Bytes in hexadecimal; spaces mean nothing, and `61*513` is 513 times 61."""
    tokens = [token.split("*") for token in text.split()]
    return b"".join(bytes.fromhex(digits) * int(*times or "1") for digits, *times in tokens)

def change_bytes(data: bytes, changes: list[Any]) -> bytes:
    """One after the other: [from, to, new bytes, or a piece as [from, to], or `flip` for its lowest bit]."""
    for *places, new in changes:
        first, end = (len(data) if place == "end" else place for place in places)
        if isinstance(new, list):
            piece = data[new[0] : new[1]]
        else:
            piece = bytes([data[first] ^ 1]) if new == "flip" else from_hex(new)
        data = data[:first] + piece + data[end:]
    return data

def change_members(document: Any, case: Case) -> None:
    """`set`, `delete` and `change`, each by path, where the path begins in the document."""
    lines = [(verb, *line) for verb in ("set", "delete", "change") for line in case.get(verb, {}).items()]
    for verb, path, value in lines:
        *way, last = [int(key) if key.isdigit() else key for key in path.split("/")]
        if ("table" in document) == path.startswith("table/"):
            inner = document
            for key in way:
                inner = inner[key]
            if verb == "delete":
                del inner[last]
            else:
                inner[last] = value if verb == "set" else CHANGES[value](inner[last])

class Key:
    """A key pair of a fixed seed (RFC 8032, 5.1.5), of mixed order if there is a torsion. Never trust it."""
    def __init__(self, seed: int, torsion: Point = (0, 1)) -> None:
        digest = hashlib.sha512(bytes([seed] * 32)).digest()
        self.scalar, self.prefix = int.from_bytes(digest[:32], "little") & (1 << 254) - 8 | 1 << 254, digest[32:]
        self.torsion, self.public = torsion, encode_point(add(multiply(self.scalar, BASE), torsion))

    def sign(self, message: bytes, how: Case) -> bytes:
        """R is given, or a nonce's multiple of B, plus a torsion; S goes with it if the cofactor is ignored."""
        nonce: int = how.get("nonce", int.from_bytes(hashlib.sha512(self.prefix + message).digest(), "little") % L)
        point = add(multiply(nonce, BASE), TORSION if "torsion" in how else (0, 1))
        r = from_hex(how.get("r", "")) or encode_point(point)
        h = challenge(r, self.public, message)
        if multiply(h, self.torsion) != (0, 1):  # verifying would see the key's torsion: try the next
            return self.sign(message, {"nonce": nonce + 1})
        s = (nonce + h * self.scalar) % L + (L if "not_reduced" in how else 0)
        return r + s.to_bytes(32, "little")

CASES = expand(json.loads(Path(__file__).with_name("cases.json").read_text("utf-8")))
TORSION = decode_point(from_hex(CASES["order_8"])) or (0, 1)
KEYS = {name: Key(seed) for name, seed in CASES["keys"].items()} | {"mixed": Key(CASES["keys"]["alice"], TORSION)}

def encode_record(case: Case, manifest: bytes) -> bytes:
    """A signature record, section 3, right or wrong."""
    name, message = str(case.get("id", case.get("by"))), signed_message(manifest)
    messages = {"manifest": manifest, "digest": hashlib.sha256(manifest).digest(), "nothing": signed_message(b""),
                "other type": message.replace(b"28 application/vnd.in-toto+json", b"16 application/json")}
    identity = key_id(KEYS[name].public) if name in KEYS else from_hex(name)
    signed = messages.get(case.get("over", ""), message)
    signature = from_hex(case["signature"]) if "signature" in case else KEYS[case["by"]].sign(signed, case)
    return struct.pack("<HHI", case.get("algorithm", 1), 0, len(signature)) + identity + signature

def tensors_of(base: str) -> dict[str, tuple[str, list[int], bytes]]:
    """A checkpoint folder's tensors: element type, shape, bytes."""
    case, tensors = CASES["bases"][base], {}
    for name in case.get("tensors", ["a.weight", "b.weight", "c.weight", "d.weight", "untouched"]):
        line = CASES["tensors"][name]
        other, dtype, shape = case.get("as", {}).get(name, (name, line["dtype"], line["shape"]))
        tensors[other] = dtype, shape, change_bytes(from_hex(line["bits"]), case.get("bytes", {}).get(name, []))
    return tensors

def encode_edit(name: str) -> bytes:
    """The bytes of a tensor's edit in the `rows` section, 6.1."""
    line = CASES["tensors"][name]
    shape, n = line["shape"], len(line["rows"])
    dtype, delta_dtype = (["", "BF16", "F16", "F32"].index(line[key]) for key in ("dtype", "delta"))
    head = struct.pack(f"<BQ{len(shape)}QBB", dtype, len(shape), *shape, line["layout"], delta_dtype)
    return text(name) + head + struct.pack(f"<Q{n}IQ{n}I", n, *line["rows"], n, *line["clusters"])

def encode_planes(codec: str, content: bytes) -> bytes:
    """What goes into the frame, section 5."""
    if codec == "zstd":
        return content
    width = int(codec.split("+")[0][-1])
    words = np.frombuffer(content, f"<u{width}")
    if codec.startswith("float"):
        words = words << 1 | words >> width * 8 - 1
    return words.astype(f"<u{width}").view(np.uint8).reshape(-1, width).T[::-1].tobytes()

def encode_residual(edits: list[Edit], folds: list[tuple[Words, Words, Words]]) -> bytes:
    """Section 6.3, from each edit's (old, new, delta rows)."""
    values, counts = b"", []
    for lane in range(LANES):
        for edit, (old, new, deltas) in zip(edits, folds):
            guess, lanes = guess_and_lanes(edit, new, deltas)
            half = 1 << edit.dtype.width * 8 - 1
            s = (old.astype(np.int64) - guess + half) % (2 * half) - half
            value = np.where(s >= 0, 2 * s, -2 * s - 1).astype(edit.dtype.words)
            values += value[lanes == lane].tobytes()
            counts += (lanes == lane).sum(axis=1).tolist()
    halves = [n & 0xFFFF for n in counts] + [n >> 16 for n in counts]
    return values + struct.pack(f"<{len(halves)}H", *halves)

def frame(content: bytes, how: Case) -> bytes:
    """A zstd frame (RFC 8878): compressed at a level, or of raw blocks under a header whose bytes are given."""
    content = content[how.get("from", 0) : how.get("to")]
    if "level" in how:
        return zstandard.ZstdCompressor(how["level"], write_checksum="checksum" in how).compress(content)
    head = from_hex(how.get("head", "e0"))
    size_bytes = (head[0] >> 5 & 1, 2, 4, 8)[head[0] >> 6]
    data = bytes.fromhex("28b52ffd") + head + struct.pack("<Q", len(content) + how.get("size", 0))[:size_bytes]
    for block in how.get("blocks", [{}]):
        piece = content[block.get("from", 0) : block.get("to")] + from_hex(block.get("more", ""))
        header = len(piece) << 3 | block.get("kind", 0) << 1 | block.get("last", 1)
        data += header.to_bytes(3, "little") + piece
    return data

def write_manifest(case: Case, head: Case, table: list[Case], base: list[Case], result: list[Case]) -> bytes:
    """The template in cases.json, filled in; then changed as a document, as text and as bytes."""
    document = json.loads(json.dumps(CASES["statement"]))
    predicate = document["predicate"]
    for line in table:
        digest = {key: line["content"][key] for key in ("blake3", "sha256")}
        document["subject"].append({"name": line["name"], "digest": digest})
    predicate["format"] |= {key: head[key] for key in ("min_reader_minor", "writer_minor")}
    predicate["sections"], predicate["content_root"] = table, content_root(table)
    predicate["base"]["tensors"], predicate["result"]["tensors"] = base, result
    change_members(document, case)
    written = json.dumps(document, indent="\r\n\t", sort_keys=True) if "spread" in case else compact(document)
    creation = {'{"method":"vectors"}': case["creation"]} if "creation" in case else {}
    for old, new in (case.get("replace", {}) | creation).items():
        written = written.replace(old, new)
    return change_bytes(written.encode(case.get("encoding", "utf-8")), case.get("text", []))

def write_sections(case: Case, contents: dict[str, bytes]) -> tuple[list[Case], dict[str, bytes]]:
    """The section table, and the sections' stored bytes."""
    sections = []
    codecs = {"rows": "zstd", "deltas": "float2+zstd", "residual": "planes2+zstd"}
    codecs |= ({"sketch": "float4+zstd"} if "sketch" in case else {}) | case.get("codec", {})
    for name, codec in codecs.items():
        if name != case.get("without"):
            data = part = change_bytes(contents[name], case.get("content", {}).get(name, []))
            if codec != "raw":
                frames = case.get("frames", {}).get(name, [{}])
                part = b"".join(frame(encode_planes(codec, data), how) for how in frames)
            part = change_bytes(part, case.get("stored", {}).get(name, []))
            critical = name in ("rows", "deltas")
            sections.append(({"name": name, "kind": name, "critical": critical, "codec": codec}, data, part))
    for more in case.get("extra", []):
        sections.append(({"name": "more", "kind": "later", "critical": False, "codec": "raw"} | more, b"abc", b"abc"))
    table = []
    for line, data, part in sections:
        stored, content = ({"length": len(b), "blake3": blake3(b).hexdigest()} for b in (part, data))
        table.append(line | {"stored": stored, "content": content | {"sha256": hashlib.sha256(data).hexdigest()}})
    change_members({"table": table}, case)
    return table, {line["name"]: part for line, _, part in sections}

def patch(case: Case) -> bytes:
    """A right patch, in which each part can be changed before the parts that depend on it are made."""
    names = case.get("edits", ["a.weight", "b.weight"])
    deltas = [from_hex(CASES["tensors"][name]["deltas"]) for name in names]
    contents = {"rows": struct.pack("<Q", len(names)) + b"".join(map(encode_edit, names)), "deltas": b"".join(deltas)}
    edits = read_rows(contents["rows"])
    tensors, base, result, folds = tensors_of(case.get("made_on", "exact")), [], [], []
    for edit, of_clusters in zip(edits, read_deltas(contents["deltas"], edits)):
        dtype, shape, data = tensors[edit.name]
        tensor, elements = np.frombuffer(bytearray(data), edit.dtype.words), edit.elements()
        old, of_rows = tensor[elements], of_clusters[edit.clusters]
        base.append({"name": edit.name, "dtype": dtype, "shape": shape} | edit.digests(tensor))
        tensor[elements] = old if "no_fold" in case else fold(edit, old, of_rows)
        result.append({"name": edit.name} | edit.digests(tensor))
        folds.append((old, tensor[elements], of_rows))
    contents["residual"] = encode_residual(edits, folds)
    sketched = [project(edit, old).tobytes() for edit, (old, _, _) in zip(edits, folds)] if "sketch" in case else []
    contents["sketch"] = struct.pack("<I", case.get("sketch", 0)) + b"".join(sketched)
    table, sections = write_sections(case, contents)
    head = {"major": 1, "min_reader_minor": 0, "writer_minor": 0, "flags": 0} | case.get("header", {})
    manifest = write_manifest(case, head, table, base, result)
    records = [encode_record(record, manifest) for record in case.get("records", [{"by": "alice"}])]
    records.sort(key=lambda record: record[8:40], reverse="descending" in case)
    signatures = change_bytes(b"".join(records), case.get("record_bytes", []))
    sections["tail"] = from_hex(case.get("tail", ""))
    lengths = len(manifest), len(signatures), sum(map(len, sections.values()))
    header = MAGIC + struct.pack("<HHHHQQQ24x", *head.values(), *map(sum, zip(lengths, case.get("longer", [0, 0, 0]))))
    parts = {"header": header, "manifest": manifest, "records": signatures} | sections
    return b"".join(change_bytes(part, case.get("late", {}).get(name, [])) for name, part in parts.items())

def save(tensors: dict[str, tuple[str, list[int], bytes]], metadata: dict[str, str] | None) -> bytes:
    """A safetensors file."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at := at + len(data)]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + b"".join(data for _, _, data in tensors.values())

def folder(name: str) -> dict[str, bytes]:
    """A checkpoint folder's files."""
    case, tensors = CASES["bases"][name], tensors_of(name)
    files = {"config.json": json.dumps(case.get("config", CASES["config"]), indent=1, ensure_ascii=False).encode()}
    for file, names in case.get("files", {"model.safetensors": list(tensors)}).items():
        files[file] = save({name: tensors[name] for name in names}, case.get("metadata"))
    return files | ({"model.safetensors.index.json": json.dumps(case["index"]).encode()} if "index" in case else {})

def make() -> dict[str, bytes]:
    """Every file below the folder, by its path there."""
    files = {file: "\n".join(lines).encode() for file, lines in CASES["trust"].items()}
    files |= {f"bases/{name}/{file}": data for name in CASES["bases"] for file, data in folder(name).items()}
    vectors = []
    for group in CASES["vectors"]:
        for short, case in group["cases"].items():
            name = f"{group['name']}-{short}"
            entry = {"file": f"{name}.nestpatch", "rule": name.replace("-", " "), "section": group["section"]}
            entry |= {"class": group["class"]} | ({"base": "exact"} if group["class"] == "ok" else {})
            entry |= {key: group[key] for key in ("base", "level", "trust", "apply", "revert") if key in group}
            assert entry["file"] not in files, name
            files[entry["file"]] = change_bytes(patch(group.get("each", {}) | case), case.get("file", []))
            vectors.append(entry)
    lines = ["[\n" + ",\n".join(map(json.dumps, rows)) + "\n]" for rows in (vectors, CASES["imports"])]
    files["index.json"] = f'{{"vectors": {lines[0]},\n"keys": {lines[1]}}}\n'.encode()
    return files

def main() -> int:
    files = make()
    for path, data in files.items() if "--check" not in sys.argv else ():
        (FOLDER / path).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / path).write_bytes(data)
    disk = {path.relative_to(FOLDER).as_posix(): path.read_bytes() for path in FOLDER.rglob("*") if path.is_file()}
    wrong = [path for path in sorted(files.keys() | disk.keys()) if files.get(path) != disk.get(path)]
    print(f"{len(files)} files, {sum(map(len, files.values()))} bytes; differ: {' '.join(wrong) or 'none'}")
    return 1 if wrong else 0

if __name__ == "__main__":
    sys.exit(main())
