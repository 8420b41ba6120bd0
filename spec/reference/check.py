"""Runs every vector, and the example of section 12, through this reader."""
import json
import sys
from pathlib import Path

from checkpoint import Checkpoint, change
from container import Policy, Refused, import_key, load_policy
from nestpatch_ref import read_patch
from vectors import FOLDER, KEYS

def outcome(data: bytes, policy: Policy, base: Path, level: str) -> dict[str, str]:
    """What happens to one vector, in the words of index.json."""
    found = {"class": "ok"}
    try:
        predicate, payload = read_patch(data, policy)
        if payload.refusals:
            return found | {"apply": "refuse"}
        checkpoint = Checkpoint(base)
        change("apply", checkpoint, predicate, payload, level)
    except Refused as refused:
        return {"class": refused.failure}
    if level != "exact":
        return found
    if payload.residual is None:
        return found | {"revert": "none"}
    try:
        change("revert", checkpoint, predicate, payload)
    except Refused as refused:
        return found | {"revert": refused.failure}
    return found if checkpoint.files == Checkpoint(base).files else {"revert": "other bytes"}

def main() -> int:
    example = (FOLDER.parent / "format" / "tiny.nestpatch").read_bytes()
    read_patch(example, Policy(1, {"example": [KEYS["example"].public]}))
    index, wrong = json.loads((FOLDER / "index.json").read_text("utf-8")), 0
    for line in index["vectors"]:
        base = FOLDER / "bases" / line.get("base", "exact")
        policy = load_policy(FOLDER / line.get("trust", "trust.toml"))
        found = outcome((FOLDER / line["file"]).read_bytes(), policy, base, line.get("level", "exact"))
        if found != {key: line[key] for key in ("class", "apply", "revert") if key in line}:
            print(f"{line} expected, {found} found", file=sys.stderr)
            wrong += 1
    for line in index["keys"]:
        try:
            refused = not import_key(line["key"])
        except Refused:
            refused = True
        if refused != line["refused"]:
            print(f"{line} expected, {refused} found", file=sys.stderr)
            wrong += 1
    print(f"{len(index['vectors'])} vectors and {len(index['keys'])} keys read, {wrong} wrong")
    return 1 if wrong else 0

if __name__ == "__main__":
    sys.exit(main())
