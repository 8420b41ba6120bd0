"""The reference implementation's commands. See ../format.md, section 9."""
import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from checkpoint import Checkpoint, change
from container import Policy, Refused, load_policy, parse_container, verify_signatures
from manifest import read_manifest
from payload import Payload, read_payload

def read_patch(data: bytes, policy: Policy) -> tuple[dict[str, Any], Payload]:
    """Every check that needs no checkpoint, in the order of section 9."""
    container = parse_container(data)
    verify_signatures(container, policy)
    predicate = read_manifest(container)
    return predicate, read_payload(container, predicate)

def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=["verify", "apply", "revert"])
    parser.add_argument("patch", type=Path)
    parser.add_argument("folders", type=Path, nargs="*", help="for apply and revert: from, to")
    parser.add_argument("--trust", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        predicate, payload = read_patch(arguments.patch.read_bytes(), load_policy(arguments.trust))
        if arguments.verb != "verify":
            source, target = arguments.folders
            checkpoint = Checkpoint(source)
            change(arguments.verb, checkpoint, predicate, payload)
            shutil.copytree(source, target)
            for name, data in checkpoint.files.items():
                (target / name).write_bytes(data)
    except Refused as refused:
        print(refused, file=sys.stderr)
        return 1
    print(f"{arguments.verb}: ok, {len(payload.edits)} tensors", *payload.refusals, sep="\n")
    return 0

if __name__ == "__main__":
    sys.exit(main())
