"""A Hugging Face checkpoint folder, its binding (section 8), apply and revert to a new folder. Failure class `base`."""
import json
import struct
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from container import Refused, require
from manifest import compact
from payload import Edit, Payload, Words, fold, unfold

class Checkpoint:
    """A folder's files in memory, and where in them each tensor lies: element type, shape, bytes."""
    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text("utf-8"))
        index = folder / "model.safetensors.index.json"
        wanted = json.loads(index.read_text("utf-8"))["weight_map"] if index.exists() else None
        names = sorted(set(wanted.values())) if wanted else ["model.safetensors"]
        self.files = {name: bytearray((folder / name).read_bytes()) for name in names}
        self.tensors: dict[str, tuple[str, tuple[int, ...], memoryview]] = {}
        for file, data in self.files.items():
            start = 8 + int.from_bytes(data[:8], "little")
            for name, entry in json.loads(data[8:start]).items():
                if name != "__metadata__" and (wanted is None or wanted.get(name) == file):
                    first, end = (start + offset for offset in entry["data_offsets"])
                    self.tensors[name] = entry["dtype"], tuple(entry["shape"]), memoryview(data)[first:end]

    def tensor(self, edit: Edit) -> Words:
        """The tensor of the edit's name, element type and shape; writing to it changes the file in memory."""
        dtype, shape, content = self.tensors.get(edit.name, ("no tensor", (), memoryview(b"")))
        expected = edit.dtype.name, edit.shape
        require((dtype, shape) == expected, "base", f"{edit.name}: {expected} expected, {dtype} {shape} found")
        return np.frombuffer(content, edit.dtype.words)

def config_text(value: Any) -> str:
    """The text of a configuration value, section 8: numbers by value, everything else by `compact`."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{compact(k)}:{config_text(value[k])}" for k in sorted(value, key=str.encode)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(config_text, value)) + "]"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value)
        require(isfinite(number), "base", "config.json: a number beyond binary64")
        whole = number.is_integer() and abs(number) < 2**53
        return str(int(number)) if whole else f"f64:{struct.unpack('<Q', struct.pack('<d', number))[0]:016x}"
    return compact(value)

def check_architecture(checkpoint: Checkpoint, architecture: dict[str, Any]) -> None:
    """Level `architecture`: the keys that are listed."""
    inner = checkpoint.config.get("text_config")
    for key, expected in architecture["config"].items():
        place = inner if isinstance(inner, dict) and key in inner else checkpoint.config
        found = config_text(place.get(key))
        require(found == expected, "base", f"config {key}: {expected} expected, {found} found")

def check_distances(payload: Payload, tensors: list[Words]) -> None:
    """Level `descendant`: the touched rows of each tensor, against the sketch."""
    sketch = payload.sketch
    if sketch is None:
        raise Refused("base", "no sketch that this reader knows")
    for n, (edit, tensor) in enumerate(zip(payload.edits, tensors, strict=True)):
        rows = tensor[edit.elements()]
        require(edit.dtype.is_finite(rows), "base", f"{edit.name}: a touched row has a NaN or an infinity")
        found = sketch.distance(n, edit, rows)
        require(found <= sketch.tolerance / 1e6, "base", f"{edit.name}: {found} from the base's rows, too far")

def change(verb: str, checkpoint: Checkpoint, predicate: Any, payload: Payload, level: str = "exact") -> None:
    """Sections 7 and 8, in memory: `apply` folds the patch in, `revert` takes it back."""
    require(not payload.refusals, "refuse", "; ".join(payload.refusals))
    require(verb == "apply" or payload.residual is not None, "base", "no residual that this reader knows")
    tensors = [checkpoint.tensor(edit) for edit in payload.edits]
    if level == "exact":
        check_tensors(payload.edits, tensors, predicate["base" if verb == "apply" else "result"])
    else:
        permitted = level in predicate["base"]["levels"] and level in ("architecture", "descendant") and verb == "apply"
        require(permitted, "base", f"the publisher does not permit {level}")
        check_architecture(checkpoint, predicate["base"]["architecture"])
    if level == "descendant":
        check_distances(payload, tensors)
    for n, (edit, tensor, deltas) in enumerate(zip(payload.edits, tensors, payload.deltas, strict=True)):
        elements, of_rows = edit.elements(), deltas[edit.clusters]
        if verb == "apply":
            tensor[elements] = fold(edit, tensor[elements], of_rows)
        elif payload.residual:
            tensor[elements] = unfold(edit, tensor[elements], of_rows, payload.residual[n])
    if level == "exact":
        check_tensors(payload.edits, tensors, predicate["result" if verb == "apply" else "base"])

def check_tensors(edits: list[Edit], tensors: list[Words], side: dict[str, Any]) -> None:
    """Level `exact`: each touched tensor's digests."""
    for edit, tensor, line in zip(edits, tensors, side["tensors"], strict=True):
        require(edit.digests(tensor).items() <= line.items(), "base", f"{edit.name}: other digests were signed")
