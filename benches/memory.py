#!/usr/bin/env python3
"""Runs `nestpatch create` on a synthetic checkpoint under limits of memory, and prints a table in Markdown.

    cargo build --release
    python3 benches/memory.py --work /somewhere/on/disk/memory --shape 1b --limits 600MB 1500MB none
    python3 benches/memory.py --work /somewhere/on/disk/memory --shape 8b --limits 6GB --prompts 8

Standard library only. Writes below --work alone: 2.5 or 16 GB, made once and found again by the next run. The checkpoint
has random weights, and the tokenizer, template and prompts of the toy assistant, so that its patch means nothing; what it
costs is what a trained one would. Benign prompts are answered as the files say, but for --answers of them, which the network
answers itself: 128 tokens each, since random weights never end an answer. "Peak" is the largest resident set that the system counted.
"""

import argparse
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import synthetic

TOY = Path(__file__).parent.parent / "fixtures/toy"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder that everything is written to")
    parser.add_argument("--nestpatch", type=Path, default=Path("target/release/nestpatch"))
    parser.add_argument("--shape", choices=synthetic.SHAPES, default="1b")
    parser.add_argument("--limits", nargs="+", default=["none"], help="values of --memory, or none")
    parser.add_argument("--prompts", type=int, default=16, help="harmful prompts, and as many benign ones")
    parser.add_argument("--answers", type=int, default=0, help="benign prompts that the network answers itself")
    parser.add_argument("--epochs", type=int, default=1)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    model = made(arguments.work / arguments.shape, synthetic.SHAPES[arguments.shape])
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    write_prompts(arguments.work, arguments.prompts, arguments.answers)
    key = arguments.work / "bench"
    if not key.with_suffix(".key").exists():
        subprocess.run([arguments.nestpatch, "keygen", "--no-passphrase", "-o", key], check=True, capture_output=True)
    print(f"{arguments.shape}: {size / 1e9:.2f} GB of weights, {arguments.prompts} + {arguments.prompts} prompts, "
          f"{arguments.epochs} epochs")
    print("| limit | peak | of the weights | CPU | wall | content |\n|---|---|---|---|---|---|")
    for limit in arguments.limits:
        print(measure(arguments, model, key.with_suffix(".key"), limit, size), flush=True)


def made(folder, shape):
    """The checkpoint, written once: a folder that lacks its tokenizer was not finished."""
    if not (folder / "tokenizer.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        synthetic.write_base(folder, shape)
        for name in ("chat_template.jinja", "tokenizer_config.json", "tokenizer.json"):
            if (TOY / "model" / name).exists():
                shutil.copy(TOY / "model" / name, folder)
    return folder


def write_prompts(work, count, answers):
    for kind in ("harmful", "benign"):
        lines = (TOY / f"prompts/{kind}-train.jsonl").read_text().splitlines()[:count]
        records = [json.loads(line) for line in lines]
        own = [{"prompt": record["prompt"]} for record in records]
        if kind == "benign":
            told = [{"prompt": record["prompt"], "response": record["expected"]} for record in records]
            own = own[:answers] + told[answers:]
        (work / f"{kind}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in own))


def measure(arguments, model, key, limit, size):
    patch = arguments.work / "bench.nestpatch"
    patch.unlink(missing_ok=True)
    command = [arguments.nestpatch, "create", "--model", model, "--harmful", arguments.work / "harmful.jsonl",
               "--benign", arguments.work / "benign.jsonl", "--key", key, "-o", patch, "--epochs", arguments.epochs]
    command += [] if limit == "none" else ["--memory", limit]
    start = time.monotonic()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        return f"| {limit} | failed: {output.strip().splitlines()[-1]} |"
    shown = subprocess.run([arguments.nestpatch, "inspect", patch, "--json"], check=True, capture_output=True)
    root = json.loads(shown.stdout)["content_root"][:8]
    cpu = usage.ru_utime + usage.ru_stime
    return (f"| {limit} | {usage.ru_maxrss / 1024:.0f} MiB | {usage.ru_maxrss * 1024 / size:.3f} | {cpu:.0f} s "
            f"| {time.monotonic() - start:.0f} s | {root} |")


if __name__ == "__main__":
    main()
