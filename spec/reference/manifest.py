"""The manifest: strict JSON (section 4.1) and its rules (4.2, 8, 10). Failure class `manifest`."""
from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any, Callable

from blake3 import blake3

from container import Container, Refused

MAX_JSON_DEPTH, MAX_JSON_MEMBERS, MAX_JSON_INTEGER = 16, 65536, 2**53
MAX_CREATION_BYTES, MAX_LABEL_BYTES, MAX_SUPERSEDES, MAX_REQUIRES = 4 << 20, 200, 64, 64
MAX_CONFIG_KEYS, MAX_CONFIG_VALUE_BYTES = 256, 16384
MAX_SECTIONS, MAX_SECTION_BYTES = 64, 1 << 30
MAX_EDITS, MAX_NAME_BYTES = 32768, 512
KNOWN_KINDS = {"rows": True, "deltas": True, "residual": False}  # kind: critical
ROOT_CONTEXT = "nestpatch v1 2026-11-24 content root"


def refuse(where: str, text: str) -> Refused:
    return Refused("manifest", f"{where or 'manifest'}: {text}")


def strict_json(data: bytes) -> dict[str, Any]:
    """Refuses whatever two JSON readers might read differently; the grammar itself is Python's."""
    if data[:1] != b"{" or data[-1:] != b"}":
        raise refuse("JSON", "not one object from the first byte to the last")
    try:
        text = data.decode("utf-8")
        depth = 0
        for bracket in re.findall(r"[][{}]", re.sub(r'"(?:[^"\\]|\\.)*"', "", text, flags=re.DOTALL)):
            depth += 1 if bracket in "{[" else -1
            if depth > MAX_JSON_DEPTH:
                raise refuse("JSON", "nested too deeply")
        value = json.loads(text, object_pairs_hook=_object, parse_int=_integer, parse_float=_no_number,
                           parse_constant=_no_number)
        _check_strings_and_lists(value)
    except ValueError as error:
        raise refuse("JSON", str(error)) from error
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs) or len(pairs) > MAX_JSON_MEMBERS:
        raise refuse("JSON", "a key twice in an object, or too many members")
    return found


def _integer(digits: str) -> int:
    if digits == "-0" or len(digits) > 17 or abs(int(digits)) >= MAX_JSON_INTEGER:
        raise refuse("JSON", f"integer {digits[:20]}")
    return int(digits)


def _no_number(digits: str) -> None:
    raise refuse("JSON", f"{digits[:20]} is not an integer")


def _check_strings_and_lists(value: Any) -> None:
    """A lone surrogate has no UTF-8: encoding it is a ValueError."""
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, list):
        if len(value) > MAX_JSON_MEMBERS:
            raise refuse("JSON", "too many elements")
        for item in value:
            _check_strings_and_lists(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            key.encode()
            _check_strings_and_lists(item)


# The shape of a manifest, as the table of section 4.2 has it. A rule raises if a value breaks it.
Rule = Callable[[Any, str], None]


def check(condition: Callable[[Any], bool], expected: str) -> Rule:
    def rule(value: Any, where: str) -> None:
        if not condition(value):
            raise refuse(where, f"{expected} expected, {str(value)[:80]!r} found")
    return rule


def members(rules: dict[str, Rule]) -> Rule:
    """An object that has these members; others are ignored (section 11)."""
    def rule(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise refuse(where, "an object expected")
        for name, inner in rules.items():
            if name not in value:
                raise refuse(where, f"no {name}")
            inner(value[name], f"{where}.{name}".lstrip("."))
    return rule


def items(inner: Rule, least: int, most: int, once: bool = False) -> Rule:
    def rule(value: Any, where: str) -> None:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise refuse(where, f"a list of {least} to {most} expected")
        for n, item in enumerate(value):
            inner(item, f"{where}[{n}]")
        if once and len(set(value)) != len(value):
            raise refuse(where, "something twice")
    return rule


def is_text(value: Any, least: int, most: int) -> bool:
    return isinstance(value, str) and least <= len(value.encode()) <= most


def has_control(text: str) -> bool:
    """U+0000 to U+001F and U+007F to U+009F."""
    return re.search("[\x00-\x1f\x7f-\x9f]", text) is not None


def integer(least: int, most: int = MAX_JSON_INTEGER - 1) -> Rule:
    return check(lambda v: type(v) is int and least <= v <= most, f"an integer from {least} to {most}")


def is_time(value: Any) -> bool:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z", value):
        return False
    try:
        return datetime.fromisoformat(value).second < 60
    except ValueError:
        return False


def constant(expected: Any) -> Rule:
    return check(lambda v: type(v) is type(expected) and v == expected, repr(expected))


def is_config(value: Any) -> bool:
    return isinstance(value, dict) and len(value) <= MAX_CONFIG_KEYS and all(
        is_label(key) and is_text(text, 0, MAX_CONFIG_VALUE_BYTES) for key, text in value.items())


def is_shape(value: Any) -> bool:
    """Section 6.1: 2 to 8 dimensions, none zero, fewer than 2^63 elements."""
    if not isinstance(value, list) or not 2 <= len(value) <= 8 or any(type(n) is not int or n < 1 for n in value):
        return False
    product = 1
    for n in value:
        product *= n
    return product < 2**63


def is_label(value: Any) -> bool:
    return is_text(value, 1, MAX_LABEL_BYTES) and not has_control(value)


def is_tensor_name(value: Any) -> bool:
    return is_text(value, 1, MAX_NAME_BYTES) and not has_control(value)


LABEL = check(is_label, "a label")
NAME = check(is_tensor_name, "a tensor name")
DIGEST = check(lambda v: isinstance(v, str) and re.fullmatch("[0-9a-f]{64}", v) is not None, "a digest")
LENGTH = integer(0, MAX_SECTION_BYTES)
SECTION = members({
    "name": LABEL, "kind": LABEL, "critical": check(lambda v: isinstance(v, bool), "a boolean"), "codec": LABEL,
    "stored": members({"length": LENGTH, "blake3": DIGEST}),
    "content": members({"length": LENGTH, "blake3": DIGEST, "sha256": DIGEST}),
})
PREDICATE = members({
    "format": members({"major": constant(1), "min_reader_minor": integer(0), "writer_minor": integer(0)}),
    "name": LABEL, "series": LABEL, "sequence": integer(1),
    "supersedes": items(DIGEST, 0, MAX_SUPERSEDES, once=True),
    "created": check(is_time, "a time as YYYY-MM-DDTHH:MM:SSZ"),
    "tool": members({"name": LABEL, "version": LABEL}),
    "requires": items(LABEL, 0, MAX_REQUIRES, once=True),
    "sections": items(SECTION, 2, MAX_SECTIONS),
    "content_root": DIGEST,
    "base": members({
        "name": LABEL,
        "architecture": members({"model_type": LABEL, "config": check(is_config, "configuration keys and texts")}),
        "levels": items(LABEL, 1, MAX_JSON_MEMBERS, once=True),
        "tensors": items(members({
            "name": NAME, "dtype": check(lambda v: v in ("BF16", "F16", "F32"), "an element type"),
            "shape": check(is_shape, "a shape"), "blake3": DIGEST, "rows": DIGEST}), 1, MAX_EDITS),
    }),
    "result": members({"tensors": items(members({"name": NAME, "blake3": DIGEST, "rows": DIGEST}), 1, MAX_EDITS)}),
    "creation": check(lambda v: isinstance(v, dict) and len(compact(v).encode()) <= MAX_CREATION_BYTES,
                      "an object of at most 4 MiB"),
})
STATEMENT = members({
    "_type": constant("https://in-toto.io/Statement/v1"),
    "subject": items(members({"name": LABEL, "digest": members({"blake3": DIGEST, "sha256": DIGEST})}),
                     2, MAX_SECTIONS),
    "predicateType": constant("urn:nestpatch:safety-patch:v1"),
    "predicate": PREDICATE,
})


def compact(value: Any) -> str:
    """JSON without white space, keys ascending, escapes only where JSON must: `creation`'s size, and section 8."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{compact(k)}:{compact(value[k])}" for k in sorted(value, key=str.encode)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(compact, value)) + "]"
    if isinstance(value, str):
        short = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
        return '"' + re.sub(r'["\\\x00-\x1f]', lambda c: short.get(c[0], f"\\u{ord(c[0]):04x}"), value) + '"'
    return json.dumps(value)


def content_root(sections: list[dict[str, Any]]) -> str:
    """Section 4.2: over names, kinds and contents, whatever the compression."""
    def text(value: str) -> bytes:
        return len(value.encode()).to_bytes(8, "little") + value.encode()
    root = blake3(len(sections).to_bytes(8, "little"), derive_key_context=ROOT_CONTEXT)
    for line in sections:
        content = line["content"]
        root.update(text(line["name"]) + text(line["kind"]))
        root.update(content["length"].to_bytes(8, "little") + bytes.fromhex(content["blake3"]))
    return root.hexdigest()


def read_manifest(container: Container) -> dict[str, Any]:
    """The statement, after every rule that needs no payload."""
    statement = strict_json(container.manifest)
    STATEMENT(statement, "")
    predicate = statement["predicate"]
    form, sections = predicate["format"], predicate["sections"]
    if (form["min_reader_minor"], form["writer_minor"]) != (container.min_reader_minor, container.writer_minor):
        raise refuse("format", "not the header's")
    check_sections(sections)
    digests = [(line["name"], line["content"]["blake3"], line["content"]["sha256"]) for line in sections]
    if [(s["name"], s["digest"]["blake3"], s["digest"]["sha256"]) for s in statement["subject"]] != digests:
        raise refuse("subject", "not the section table's names and digests")
    if predicate["content_root"] != content_root(sections):
        raise refuse("content_root", f"{content_root(sections)} expected")
    if sum(line["stored"]["length"] for line in sections) != len(container.payload):
        raise refuse("sections", f"stored lengths do not add up to {len(container.payload)}")
    if "exact" not in predicate["base"]["levels"]:
        raise refuse("base.levels", "exact is not among them")
    names = [tensor["name"] for tensor in predicate["base"]["tensors"]]
    if names != sorted(set(names), key=str.encode):
        raise refuse("base.tensors", "names are not strictly ascending")
    if names != [tensor["name"] for tensor in predicate["result"]["tensors"]]:
        raise refuse("result.tensors", "not the tensors of base.tensors, in order")
    return statement


def check_sections(sections: list[dict[str, Any]]) -> None:
    """The rules on the section table, section 4.2."""
    names = [line["name"] for line in sections]
    kinds = [line["kind"] for line in sections]
    if len(set(names)) != len(names):
        raise refuse("sections", "a name twice")
    if any(kinds.count(kind) > 1 for kind in KNOWN_KINDS) or not {"rows", "deltas"} <= set(kinds):
        raise refuse("sections", "rows or deltas missing, or a known kind twice")
    for line in sections:
        if line["kind"] in KNOWN_KINDS and line["critical"] != KNOWN_KINDS[line["kind"]]:
            raise refuse(line["name"], "critical is wrong for its kind")
        stored, content = line["stored"], line["content"]
        same = stored["length"] == content["length"] and stored["blake3"] == content["blake3"]
        if line["codec"] == "raw" and not same:
            raise refuse(line["name"], "raw, but stored and content differ")
