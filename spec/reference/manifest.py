"""The manifest: strict JSON (section 4.1) and its rules (4.2, 8, 10). Failure class `manifest`."""
import json
import re
from datetime import datetime
from math import prod
from pathlib import Path
from typing import Any, Callable

from blake3 import blake3

from container import Container, Refused, require, text

MAX_JSON_DEPTH, MAX_JSON_MEMBERS, MAX_JSON_INTEGER = 16, 65536, 2**53
MAX_LABEL_BYTES, MAX_EDITS, MAX_NAME_BYTES = 200, 32768, 512
KNOWN_KINDS = {"rows": True, "deltas": True, "residual": False, "sketch": False}  # kind: critical
MEMBERS = json.loads(Path(__file__).with_name("members.json").read_text("utf-8"))  # section 4.2's table

def strict_json(data: bytes) -> Any:
    """Refuses whatever two JSON readers might read differently, section 4.1; the grammar itself is Python's."""
    require(data[:1] == b"{" and data[-1:] == b"}", "manifest", "not one object from the first byte to the last")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_int=_number, parse_float=_number,
                           parse_constant=_number)
        _check_strings_and_sizes(value, 1)
    except (ValueError, RecursionError) as error:
        raise Refused("manifest", f"JSON: {error}") from error
    return value

def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    require(len(dict(pairs)) == len(pairs), "manifest", "JSON: a key twice in an object")
    return dict(pairs)

def _number(digits: str) -> int:
    plain = re.fullmatch("0|-?[1-9][0-9]{,15}", digits)
    require(plain and abs(int(digits)) < MAX_JSON_INTEGER, "manifest", f"JSON: {digits[:20]}, a small integer expected")
    return int(digits)

def _check_strings_and_sizes(value: Any, depth: int) -> None:
    """A lone surrogate has no UTF-8: encoding it is a ValueError."""
    if isinstance(value, str):
        value.encode()
    if isinstance(value, (list, dict)):
        require(depth <= MAX_JSON_DEPTH and len(value) <= MAX_JSON_MEMBERS, "manifest", "JSON: too deep, or too many")
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_strings_and_sizes(item, depth + 1)

def check(value: Any, rule: Any, where: str) -> None:
    """By a rule of members.json: an object of rules, a list of one, or a name and numbers. Others are ignored (11)."""
    if isinstance(rule, dict):
        require(isinstance(value, dict), "manifest", f"{where}: an object expected")
        for name, inner in rule.items():
            require(name in value, "manifest", f"{where}: no {name}")
            check(value[name], inner, f"{where}.{name}")
        return
    name, *words = (rule[0] if isinstance(rule, list) else rule).split()
    limits = [int(word) if word.isdigit() else word for word in words]
    require(RULES[name](value, *limits), "manifest", f"{where}: {name} {words} expected, {str(value)[:80]!r} found")
    if isinstance(rule, list):
        for n, item in enumerate(value):
            check(item, rule[1], f"{where}[{n}]")
        require("once" not in limits or len(set(value)) == len(value), "manifest", f"{where}: something twice")

def is_line(value: Any, least: int = 1, most: int = MAX_LABEL_BYTES) -> bool:
    """Text without U+0000 to U+001F and U+007F to U+009F; a label, if nothing else is said."""
    return is_text(value, least, most) and not re.search("[\x00-\x1f\x7f-\x9f]", value)

def is_text(value: Any, least: int, most: int) -> bool:
    return isinstance(value, str) and least <= len(value.encode()) <= most

def is_time(value: Any) -> bool:
    try:
        return len(value) == 20 and datetime.fromisoformat(value[:19]).isoformat() + "Z" == value
    except (TypeError, ValueError):
        return False

def is_config(value: Any, keys: int, most: int) -> bool:
    fits = isinstance(value, dict) and len(value) <= keys
    return fits and all(is_line(key) and is_text(inner, 0, most) for key, inner in value.items())

def is_shape(value: Any) -> bool:
    """Section 6.1: 2 to 8 dimensions, none zero, fewer than 2^63 elements."""
    several = isinstance(value, list) and 2 <= len(value) <= 8
    return several and all(type(n) is int and n > 0 for n in value) and prod(value) < 2**63

def compact(value: Any) -> str:
    """JSON without white space, escapes only where JSON must."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

RULES: dict[str, Callable[..., bool]] = {
    "is": lambda value, constant: value == constant,
    "boolean": lambda value: type(value) is bool,
    "integer": lambda value, least, most=MAX_JSON_INTEGER - 1: type(value) is int and least <= value <= most,
    "label": is_line, "line": is_line, "time": is_time, "shape": is_shape, "config": is_config,
    "digest": lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None,
    "dtype": lambda value: value in ("BF16", "F16", "F32"),
    "list": lambda value, least, most, once="": isinstance(value, list) and least <= len(value) <= most,
    "object": lambda value, most: isinstance(value, dict) and len(compact(value).encode()) <= most,
}

def content_root(sections: list[dict[str, Any]]) -> str:
    """Section 4.2: over names, kinds and contents, whatever the compression."""
    root = blake3(len(sections).to_bytes(8, "little"), derive_key_context="nestpatch v1 2026-11-24 content root")
    for line in sections:
        length = line["content"]["length"].to_bytes(8, "little")
        root.update(text(line["name"]) + text(line["kind"]) + length + bytes.fromhex(line["content"]["blake3"]))
    return root.hexdigest()

def read_manifest(container: Container) -> dict[str, Any]:
    """The predicate, after every rule that needs no payload."""
    statement = strict_json(container.manifest)
    check(statement, MEMBERS, "manifest")
    predicate: dict[str, Any] = statement["predicate"]
    form, sections, base = predicate["format"], predicate["sections"], predicate["base"]
    require((form["min_reader_minor"], form["writer_minor"]) == container.minors, "manifest", "format: not the header")
    kinds = [line["kind"] for line in sections]
    require(len({line["name"] for line in sections}) == len(sections), "manifest", "sections: a name twice")
    require(all(kinds.count(kind) <= 1 for kind in KNOWN_KINDS), "manifest", "sections: a known kind twice")
    require({"rows", "deltas"} <= set(kinds), "manifest", "sections: rows or deltas missing")
    for line in sections:
        critical = KNOWN_KINDS.get(line["kind"], line["critical"])
        require(line["critical"] == critical, "manifest", f"{line['name']}: critical is wrong for its kind")
        same = all(line["stored"][key] == line["content"][key] for key in ("length", "blake3"))
        require(line["codec"] != "raw" or same, "manifest", f"{line['name']}: raw, but stored and content differ")
    found = [(s["name"], s["digest"]["blake3"], s["digest"]["sha256"]) for s in statement["subject"]]
    expected = [(line["name"], line["content"]["blake3"], line["content"]["sha256"]) for line in sections]
    require(found == expected, "manifest", "subject is not the section table's names and digests")
    require(predicate["content_root"] == content_root(sections), "manifest", "content_root is another")
    total = sum(line["stored"]["length"] for line in sections)
    require(total == len(container.payload), "manifest", f"stored: {total} bytes, payload: {len(container.payload)}")
    require("exact" in base["levels"], "manifest", "exact is not among base.levels")
    require(("descendant" in base["levels"]) == ("sketch" in kinds), "manifest", "one of descendant and sketch alone")
    names = [tensor["name"] for tensor in base["tensors"]]
    require(names == sorted(set(names), key=str.encode), "manifest", "base.tensors: names are not strictly ascending")
    same = names == [tensor["name"] for tensor in predicate["result"]["tensors"]]
    require(same, "manifest", "result.tensors: not the tensors of base.tensors, in order")
    return predicate
