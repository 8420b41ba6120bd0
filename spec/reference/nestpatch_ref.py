"""The reference implementation's commands: verify, apply, revert. See ../format.md, section 9."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from checkpoint import apply, revert
from container import Container, Policy, Refused, verify_signatures
from manifest import read_manifest
from payload import Payload, read_payload


def read_patch(data: bytes, policy: Policy) -> tuple[dict[str, Any], Payload]:
    """Every check that needs no checkpoint, in the order of section 9."""
    container = Container.parse(data)
    verify_signatures(container, policy)
    statement = read_manifest(container)
    return statement["predicate"], read_payload(container, statement)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=["verify", "apply", "revert"])
    parser.add_argument("patch", type=Path)
    parser.add_argument("folders", type=Path, nargs="*", help="for apply and revert: from, to")
    parser.add_argument("--trust", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        predicate, payload = read_patch(arguments.patch.read_bytes(), Policy.load(arguments.trust))
        if arguments.verb != "verify":
            source, target = arguments.folders
            (apply if arguments.verb == "apply" else revert)(source, predicate, payload, target)
    except Refused as refused:
        print(refused, file=sys.stderr)
        return 1
    print(f"{arguments.verb}: ok", *payload.refusals, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
