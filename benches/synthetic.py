"""Synthetic checkpoints for benches/peers.py and benches/memory.py: seeded, of a real model's shape, from the standard library alone.

Weights are random bits under a table of exponents: spread roughly like a normal distribution, and as good as
incompressible, so that a program that makes patches finds in them what it finds in trained ones. An edit adds one
shared delta per cluster to the rows of some neurons, in gate and up, as a patch does: a sum in f32, rounded to the
nearest bf16, ties to even.
"""

import json
import math
import os
import random
import struct
from array import array
from pathlib import Path

SHAPES = {
    # Llama-3.2-1B: 2.47 GB in three shards.
    "1b": dict(layers=16, hidden=2048, ffn=8192, heads=32, kv=8, vocab=128256, neurons=50, clusters=10),
    # Llama-3.1-8B: 16.06 GB in three shards, the head a tensor of its own.
    "8b": dict(layers=32, hidden=4096, ffn=14336, heads=32, kv=8, vocab=128256, neurons=50, clusters=10, untied=True),
    # The first in 20 MB, for a quick try.
    "small": dict(layers=8, hidden=256, ffn=1024, heads=8, kv=2, vocab=8192, neurons=8, clusters=3),
}
SHARDS = 3
SEED = 20261101
INDEX = "model.safetensors.index.json"
PIECE = 1 << 22


def tensors(shape):
    """Name, dimensions and standard deviation of every tensor; None for the weights of a norm."""
    hidden, ffn = shape["hidden"], shape["ffn"]
    kv = shape["kv"] * (hidden // shape["heads"])
    yield "model.embed_tokens.weight", (shape["vocab"], hidden), 0.02
    for layer in range(shape["layers"]):
        at = f"model.layers.{layer}."
        yield at + "input_layernorm.weight", (hidden,), None
        yield at + "mlp.down_proj.weight", (hidden, ffn), ffn**-0.5
        yield at + "mlp.gate_proj.weight", (ffn, hidden), hidden**-0.5
        yield at + "mlp.up_proj.weight", (ffn, hidden), hidden**-0.5
        yield at + "post_attention_layernorm.weight", (hidden,), None
        yield at + "self_attn.k_proj.weight", (kv, hidden), 0.02
        yield at + "self_attn.o_proj.weight", (hidden, hidden), 0.02
        yield at + "self_attn.q_proj.weight", (hidden, hidden), 0.02
        yield at + "self_attn.v_proj.weight", (kv, hidden), 0.02
    yield "model.norm.weight", (hidden,), None
    if shape.get("untied"):
        yield "lm_head.weight", (shape["vocab"], hidden), 0.02


def config(shape):
    return {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "bos_token_id": 1, "eos_token_id": 2,
        "head_dim": shape["hidden"] // shape["heads"], "hidden_act": "silu", "hidden_size": shape["hidden"],
        "intermediate_size": shape["ffn"], "max_position_embeddings": 131072, "mlp_bias": False,
        "model_type": "llama", "num_attention_heads": shape["heads"], "num_hidden_layers": shape["layers"],
        "num_key_value_heads": shape["kv"], "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
        "tie_word_embeddings": not shape.get("untied"), "torch_dtype": "bfloat16", "vocab_size": shape["vocab"],
    }


def exponents(std):
    """256 upper bytes of a bf16 (sign and seven bits of the exponent), as often as a normal distribution has them."""
    table, below = [], 0.0
    for upper in range(128):
        # All numbers under the end of this upper byte's two octaves.
        under = math.erf(2.0 ** min(2 * upper - 125, 127) / std / math.sqrt(2))
        table += [upper] * (round(128 * under) - round(128 * below))
        below = under
    return bytes(table + [128 | upper for upper in table])


def weights(dims, std, seed):
    """The bytes of a tensor, piece by piece."""
    left, source = math.prod(dims), random.Random(seed)
    table = exponents(std) if std else None
    while left:
        count = min(left, PIECE)
        piece = bytearray(2 * count)
        if table:
            piece[0::2] = source.randbytes(count)
            piece[1::2] = source.randbytes(count).translate(table)
        else:
            # Around 1: from 0.75 to 1.25, roughly.
            piece = bytearray(b"".join(struct.pack("<H", 0x3F80 + source.randrange(-40, 33)) for _ in range(count)))
        yield piece
        left -= count


def write_base(folder, shape):
    """Writes the checkpoint; gives where each tensor lies: shard, position of its bytes, dimensions."""
    folder.mkdir(parents=True)
    whole = list(tensors(shape))
    sizes = [2 * math.prod(dims) for _, dims, _ in whole]
    share = 1.02 * sum(sizes) / SHARDS
    shards, filled = [[]], 0
    for tensor, size in zip(whole, sizes):
        if shards[-1] and filled + size > share and len(shards) < SHARDS:
            shards, filled = shards + [[]], 0
        shards[-1].append(tensor)
        filled += size
    places = {}
    for number, held in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_shard(folder / name, held, places)
    index = {"metadata": {"total_size": sum(sizes)},
             "weight_map": {tensor: place["shard"] for tensor, place in places.items()}}
    (folder / INDEX).write_text(json.dumps(index, indent=2))
    (folder / "config.json").write_text(json.dumps(config(shape), indent=2))
    return places


def write_shard(path, held, places):
    entries, end = {"__metadata__": {"format": "pt"}}, 0
    for name, dims, _ in held:
        begin, end = end, end + 2 * math.prod(dims)
        entries[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [begin, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for name, dims, std in held:
            places[name] = {"shard": path.name, "at": file.tell(), "dims": list(dims)}
            for piece in weights(dims, std, f"{SEED} {name}"):
                file.write(piece)


def widen(raw):
    """bf16 bytes as floats."""
    wide = bytearray(2 * len(raw))
    wide[2::4], wide[3::4] = raw[0::2], raw[1::2]
    return array("f", bytes(wide))


def narrow(values):
    """Floats as bf16 bytes: to the nearest, ties to even."""
    bits = array("I", array("f", values).tobytes())
    return array("H", ((u + 0x7FFF + (u >> 16 & 1)) >> 16 for u in bits)).tobytes()


def edits(shape, layers):
    """For each touched tensor its rows, the cluster of each, and the clusters' deltas as bf16 bytes."""
    source, hidden = random.Random(f"{SEED} edits"), shape["hidden"]
    made = {}
    for layer in range(shape["layers"]):
        rows = sorted(source.sample(range(shape["ffn"]), shape["neurons"]))
        clusters = [number % shape["clusters"] for number in range(len(rows))]
        source.shuffle(clusters)
        for projection in ("gate", "up"):
            deltas = [narrow([source.gauss(0, hidden**-0.5) for _ in range(hidden)]) for _ in range(shape["clusters"])]
            if layer in layers:
                made[f"model.layers.{layer}.mlp.{projection}_proj.weight"] = (rows, clusters, deltas)
    return made


def apply_edits(folder, places, made):
    """Adds the deltas to the rows where they lie."""
    for name, (rows, clusters, deltas) in made.items():
        place, width = places[name], 2 * places[name]["dims"][1]
        with open(folder / place["shard"], "r+b") as file:
            for row, cluster in zip(rows, clusters):
                file.seek(place["at"] + row * width)
                old = widen(file.read(width))
                file.seek(place["at"] + row * width)
                file.write(narrow(map(float.__add__, old, widen(deltas[cluster]))))
            os.fsync(file.fileno())


def write_adapter(folder, base, shape, made):
    """The same edit as a LoRA: A holds the deltas, B says which row has which."""
    folder.mkdir()
    rank = shape["clusters"]
    entries, data = {}, []
    for name, (rows, clusters, deltas) in made.items():
        chosen = bytearray(2 * rank * shape["ffn"])
        for row, cluster in zip(rows, clusters):
            struct.pack_into("<H", chosen, 2 * (row * rank + cluster), 0x3F80)
        stem = "base_model.model." + name.removesuffix(".weight")
        for part, dims, raw in (("A", [rank, shape["hidden"]], b"".join(deltas)), ("B", [shape["ffn"], rank], chosen)):
            begin = sum(map(len, data))
            data.append(bytes(raw))
            entries[f"{stem}.lora_{part}.weight"] = {
                "dtype": "BF16", "shape": dims, "data_offsets": [begin, begin + len(raw)]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"".join(data))
    (folder / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "lora_dropout": 0.0,
        "bias": "none", "inference_mode": True, "target_modules": ["gate_proj", "up_proj"],
        "base_model_name_or_path": str(Path(base).resolve()),
    }))
