"""A Hugging Face checkpoint folder, its binding (section 8), apply and revert to a new folder. Failure class `base`."""
from __future__ import annotations

import json
import shutil
import struct
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from container import Refused
from manifest import compact
from payload import BY_NAME, Edit, Payload, Words, fold, unfold


def refuse(text: str) -> Refused:
    return Refused("base", text)


class Checkpoint:
    """Where each tensor lies: file, element type, shape, first byte, length."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = json.loads((folder / "config.json").read_text("utf-8"))
        index = folder / "model.safetensors.index.json"
        wanted = json.loads(index.read_text("utf-8"))["weight_map"] if index.exists() else None
        files = sorted(set(wanted.values())) if wanted else ["model.safetensors"]
        self.places: dict[str, tuple[Path, str, tuple[int, ...], int, int]] = {}
        for file in files:
            with open(folder / file, "rb") as stream:
                (n,) = struct.unpack("<Q", stream.read(8))
                for name, entry in json.loads(stream.read(n)).items():
                    if name != "__metadata__" and (wanted is None or wanted.get(name) == file):
                        first, end = entry["data_offsets"]
                        kind = entry["dtype"], tuple(entry["shape"])
                        self.places[name] = (folder / file, *kind, 8 + n + first, end - first)

    def read(self, edit: Edit) -> Words:
        """A tensor of the edit's name, element type and shape."""
        path, dtype, shape, offset, length = self.places.get(edit.name, (self.folder, "no tensor", (), 0, 0))
        if (dtype, shape) != (edit.dtype.name, edit.shape):
            raise refuse(f"{edit.name}: {edit.dtype.name} {edit.shape} expected, {dtype} {shape} found")
        with open(path, "rb") as stream:
            stream.seek(offset)
            return np.frombuffer(stream.read(length), edit.dtype.words).copy()

    def write(self, edit: Edit, tensor: Words) -> None:
        path, _, _, offset, _ = self.places[edit.name]
        with open(path, "r+b") as stream:
            stream.seek(offset)
            stream.write(tensor.tobytes())


def config_text(value: Any) -> str:
    """The text of a configuration value, section 8: numbers by value, everything else by `compact`."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{compact(k)}:{config_text(value[k])}" for k in sorted(value, key=str.encode)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(config_text, value)) + "]"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value)
        if not isfinite(number):
            raise refuse("config.json: a number beyond binary64")
        whole = number.is_integer() and abs(number) < 2**53
        return str(int(number)) if whole else f"f64:{struct.unpack('<Q', struct.pack('<d', number))[0]:016x}"
    return compact(value)


def check_architecture(checkpoint: Checkpoint, architecture: dict[str, Any]) -> None:
    """Level `architecture`: the keys that are listed."""
    inner = checkpoint.config.get("text_config")
    for key, expected in architecture["config"].items():
        place = inner if isinstance(inner, dict) and key in inner else checkpoint.config
        if config_text(place.get(key)) != expected:
            raise refuse(f"config {key}: {expected} expected, {config_text(place.get(key))} found")


def check_tensors(edits: list[Edit], tensors: list[Words], listed: list[dict[str, Any]], what: str) -> None:
    """Level `exact`: each touched tensor's digests."""
    for edit, tensor, line in zip(edits, tensors, listed, strict=True):
        if edit.rows_digest(tensor) != line["rows"] or edit.tensor_digest(tensor) != line["blake3"]:
            raise refuse(f"{edit.name} is not the {what}'s")


def apply(folder: Path, predicate: dict[str, Any], payload: Payload, out: Path, level: str = "exact") -> None:
    """Copies `folder` to `out` and folds the patch into the copy."""
    edits, tensors = _open(folder, payload)
    if level == "exact":
        check_tensors(edits, tensors, predicate["base"]["tensors"], "base")
    elif level in predicate["base"]["levels"] and level == "architecture":
        check_architecture(Checkpoint(folder), predicate["base"]["architecture"])
    else:
        raise refuse(f"the publisher does not permit {level}")
    for edit, tensor, deltas in zip(edits, tensors, payload.deltas, strict=True):
        edit.put(tensor, fold(edit, edit.take(tensor), deltas[edit.clusters]))
    if level == "exact":
        check_tensors(edits, tensors, predicate["result"]["tensors"], "result")
    _write(folder, out, edits, tensors)


def revert(folder: Path, predicate: dict[str, Any], payload: Payload, out: Path) -> None:
    """Copies the patched `folder` to `out` and takes the patch back from the copy."""
    edits, tensors = _open(folder, payload)
    if payload.residual is None:
        raise refuse("the patch has no residual that this reader knows")
    check_tensors(edits, tensors, predicate["result"]["tensors"], "result")
    for edit, tensor, deltas, residual in zip(edits, tensors, payload.deltas, payload.residual, strict=True):
        edit.put(tensor, unfold(edit, edit.take(tensor), deltas[edit.clusters], residual))
    check_tensors(edits, tensors, predicate["base"]["tensors"], "base")
    _write(folder, out, edits, tensors)


def _open(folder: Path, payload: Payload) -> tuple[list[Edit], list[Words]]:
    if payload.refusals:
        raise Refused("refuse", "; ".join(payload.refusals))
    checkpoint = Checkpoint(folder)
    return payload.edits, [checkpoint.read(edit) for edit in payload.edits]


def _write(folder: Path, out: Path, edits: list[Edit], tensors: list[Words]) -> None:
    shutil.copytree(folder, out)
    checkpoint = Checkpoint(out)
    for edit, tensor in zip(edits, tensors, strict=True):
        checkpoint.write(edit, tensor)
