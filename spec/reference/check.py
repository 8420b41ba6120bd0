"""Runs every vector through this reader, and compares a patch of another writer with its folders bit for bit."""
from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from checkpoint import Checkpoint, apply, revert
from container import Policy, Refused, import_key
from nestpatch_ref import read_patch
from payload import Payload
from vectors import FOLDER, Key


def outcome(data: bytes, policy: Policy, base: Path | None, level: str) -> dict[str, str]:
    """What happens to one vector, in the words of index.json."""
    found = {"class": "ok"}
    with tempfile.TemporaryDirectory() as scratch:
        patched, back = Path(scratch) / "patched", Path(scratch) / "back"
        try:
            predicate, payload = read_patch(data, policy)
            if payload.refusals:
                found["apply"] = "refuse"
            elif base:
                apply(base, predicate, payload, patched, level)
        except (Refused, RecursionError) as refused:
            return {"class": getattr(refused, "failure", "crash")}
        if patched.exists() and level == "exact":
            if payload.residual is None:
                return found | {"revert": "none"}
            try:
                revert(patched, predicate, payload, back)
            except Refused as refused:
                return found | {"revert": refused.failure}
            compare(base or back, back, payload)
    return found


def compare(expected: Path, found: Path, payload: Payload) -> None:
    """All touched tensors, bit for bit."""
    for edit in payload.edits:
        if Checkpoint(expected).read(edit).tobytes() != Checkpoint(found).read(edit).tobytes():
            raise Refused("compare", f"{edit.name} differs in {expected} and {found}")


def check_vectors() -> int:
    index = json.loads((FOLDER / "index.json").read_text("utf-8"))
    wrong = 0
    for line in index["vectors"]:
        policy = Policy.load(FOLDER / line.get("trust", "trust.toml"))
        base = FOLDER / "bases" / line["base"] if "base" in line else None
        found = outcome((FOLDER / line["file"]).read_bytes(), policy, base, line.get("level", "exact"))
        expected = {key: line[key] for key in ("class", "apply", "revert") if key in line}
        if found != expected:
            print(f"{line['file']}: {expected} expected, {found} found", file=sys.stderr)
            wrong += 1
    for line in index["keys"]:
        try:
            refused = not import_key(line["key"])
        except Refused:
            refused = True
        if refused != line["refused"]:
            print(f"key, {line['rule']}: refused {line['refused']} expected", file=sys.stderr)
            wrong += 1
    print(f"{len(index['vectors'])} vectors and {len(index['keys'])} keys read, {wrong} wrong")
    return wrong


def check_patch(patch: Path, policy: Policy, base: Path, patched: Path) -> None:
    """Another writer's patch, base and patched folder against this applier."""
    predicate, payload = read_patch(patch.read_bytes(), policy)
    with tempfile.TemporaryDirectory() as scratch:
        ours, back = Path(scratch) / "patched", Path(scratch) / "back"
        apply(base, predicate, payload, ours)
        compare(patched, ours, payload)
        revert(patched, predicate, payload, back)
        compare(base, back, payload)
    rows = sum(len(edit.rows) for edit in payload.edits)
    print(f"{patch}: {len(payload.edits)} tensors, {rows} rows agree, patched and reverted")


def read_pem(path: Path) -> bytes:
    return import_key("".join(line for line in path.read_text("ascii").splitlines() if not line.startswith("-----")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--patch", "--base", "--patched", "--key"):
        parser.add_argument(name, type=Path, help="all four: check a patch of another writer; the key is a PEM file")
    arguments = parser.parse_args()
    if arguments.patch:
        policy = Policy(1, {"writer": [read_pem(arguments.key)]})
        check_patch(arguments.patch, policy, arguments.base, arguments.patched)
        return 0
    read_patch((FOLDER.parent / "format" / "tiny.nestpatch").read_bytes(), Policy(1, {"test": [Key(1).public]}))
    return 1 if check_vectors() else 0


if __name__ == "__main__":
    sys.exit(main())
