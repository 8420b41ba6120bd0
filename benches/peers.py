#!/usr/bin/env python3
"""Times nestpatch beside programs that do part of its work, on a synthetic checkpoint, and prints a table in Markdown.

    cargo build --release --no-default-features
    python3 benches/peers.py --work /somewhere/on/disk/peers [--shape small] [--rounds 5] [--venv VENV]

Standard library only. Writes below --work alone: 14 GB for the full shape, made once and found again by the next run.
Every round runs every command once, in order; a ratio is taken within a round, and of each the median is shown: other
work on the machine then slows both sides of a ratio. A program that is not there is named and passed over. With --venv,
a virtual environment with peft and transformers, or mergekit, those are timed as well.

Memory: "peak" is what the system counted for the largest process; "own" is without the pages of files that it had
mapped, sampled every few milliseconds and added up over the processes of a command.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import synthetic

MIB = 1 << 20
SAMPLE_S = 0.004
FIGURES = ("wall", "cpu", "peak", "high", "own")
CONTENT = "*.safetensors"

# Braces hold paths below the work folder (Bench.paths); {shard} repeats a line for every shard.
EXTRACT = "{nestpatch} extract --base {base} --tuned {tuned} --key {key}.key -o {patch} -q"
AUDIT = "{nestpatch} audit {all_patch} --base {base} --patched {patched} --key {key}.pub"

PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder that everything is written to")
    parser.add_argument("--nestpatch", type=Path, default=Path("target/release/nestpatch"))
    parser.add_argument("--shape", choices=synthetic.SHAPES, default="1b")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--venv", type=Path, help="virtual environment with peft, or mergekit")
    parser.add_argument("--only", metavar="WORD", nargs="+", help="commands whose name holds one of these words")
    bench = Bench(parser.parse_args())
    bench.set_up()
    bench.measure()
    bench.report()


class Command:
    """A command to time, what comes before it untimed, and what must hold after it."""

    def __init__(self, name, line, before=(), after=None, patch=None):
        self.name, self.line, self.before, self.after, self.patch = name, line, list(before), after, patch
        self.runs = []


class Bench:
    def __init__(self, arguments):
        self.arguments, self.shape = arguments, synthetic.SHAPES[arguments.shape]
        self.work = arguments.work.resolve() / arguments.shape
        names = "base patched one place out adapter key peers all_patch one_patch new_patch recipe cache script".split()
        self.paths = {name: str(self.work / name) for name in names}
        self.paths["nestpatch"] = str(arguments.nestpatch.resolve())
        self.missing, self.patches = [], {}

    def fill(self, text, **more):
        """A line of shell with its paths, once for every shard if it names one."""
        paths = self.paths | more
        if "{shard}" not in text:
            return text.format(**paths)
        shards = [path.name for path in sorted(Path(self.paths["base"]).glob(CONTENT))]
        return " && ".join(text.format(**paths, shard=shard) for shard in shards)

    def run(self, text, **more):
        line = self.fill(text, **more)
        done = subprocess.run(["sh", "-c", line], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"failed ({done.returncode}): {line}\n{done.stderr}")

    def verb(self, *words):
        """Whether nestpatch has a verb with this option."""
        help = subprocess.run([self.paths["nestpatch"], words[0], "--help"], capture_output=True, text=True)
        return help.returncode == 0 and all(word in help.stdout for word in words[1:])

    # The checkpoints and patches.

    def set_up(self):
        if not os.access(self.paths["nestpatch"], os.X_OK):
            sys.exit(f"{self.paths['nestpatch']} is not there: cargo build --release --no-default-features")
        done = self.work / "done"
        if not done.exists():
            shutil.rmtree(self.work, ignore_errors=True)
            self.work.mkdir(parents=True)
            say("making the checkpoints")
            self.make_checkpoints()
            done.touch()
        for name in ("all_patch", "one_patch", "new_patch"):
            Path(self.paths[name]).unlink(missing_ok=True)
        if (Path(self.paths["place"]) / "nestpatch").exists():
            # A run was cut off between apply and revert.
            self.run("{nestpatch} status {place} && {nestpatch} revert {place} --in-place")
        if not self.verb("extract"):
            sys.exit("this nestpatch has no verb `extract`, which makes the patches to measure")
        if not Path(self.paths["key"] + ".key").exists():
            self.run("{nestpatch} keygen -o {key} --no-passphrase")
        say("extracting the patches")
        for tuned, patch in (("patched", "all_patch"), ("one", "one_patch")):
            self.run(EXTRACT, tuned=self.paths[tuned], patch=self.paths[patch])
        say("encoding for the others")
        self.encode()

    def make_checkpoints(self):
        base, patched, one = (Path(self.paths[name]) for name in ("base", "patched", "one"))
        places = synthetic.write_base(base, self.shape)
        made = synthetic.edits(self.shape, range(self.shape["layers"]))
        shutil.copytree(base, patched)
        synthetic.apply_edits(patched, places, made)
        synthetic.write_adapter(Path(self.paths["adapter"]), base, self.shape, made)
        # The middle shard alone: every layer whose edited tensors lie in it.
        middle = sorted({place["shard"] for place in places.values()})[1]
        outside = {name.split(".")[2] for name in made if places[name]["shard"] != middle}
        inside = {int(name.split(".")[2]) for name in made} - {int(layer) for layer in outside}
        shutil.copytree(base, one, copy_function=os.link)
        (one / middle).unlink()
        shutil.copy2(base / middle, one / middle)
        synthetic.apply_edits(one, places, synthetic.edits(self.shape, inside))
        shutil.copytree(base, self.paths["place"])

    def encode(self):
        """Patches of the other programs, shard by shard."""
        peers = Path(self.paths["peers"])
        shutil.rmtree(peers, ignore_errors=True)
        peers.mkdir()
        window = max(path.stat().st_size for path in Path(self.paths["base"]).glob(CONTENT))
        for name, end, line in (
            ("rdiff", "delta", "rdiff signature {base}/{shard} {peers}/{shard}.signature"
             " && rdiff delta {peers}/{shard}.signature {patched}/{shard} {peers}/{shard}.delta"),
            ("xdelta3", "xdelta", f"xdelta3 -e -B {window}"
             " -s {base}/{shard} {patched}/{shard} {peers}/{shard}.xdelta"),
            ("zstd", "zst", "zstd -q -3 --long=31 --patch-from={base}/{shard} {patched}/{shard}"
             " -o {peers}/{shard}.zst"),
        ):
            if shutil.which(name):
                self.run(line)
                self.patches[name] = sum(path.stat().st_size for path in peers.glob(f"*.{end}"))
        self.window = window

    # The commands.

    def commands(self):
        fresh, is_patched = ["rm -rf {out}"], "cmp {patched}/{shard} {out}/{shard}"
        yield Command("cp -r", "cp -r {base} {out}", fresh)
        yield Command("cp -r and sync", "cp -r {base} {out} && sync {out}/*", fresh)
        yield from self.nestpatch(fresh, is_patched)
        yield Command("cmp", "cmp {base}/{shard} {place}/{shard}")
        made = fresh + ["mkdir {out}"]
        for name, shown, line in (
            ("rdiff", "rdiff patch", "rdiff patch {base}/{shard} {peers}/{shard}.delta {out}/{shard}"),
            ("xdelta3", "xdelta3 -d", f"xdelta3 -d -B {self.window}"
             " -s {base}/{shard} {peers}/{shard}.xdelta {out}/{shard}"),
            ("zstd", "zstd --patch-from", "zstd -q -d --long=31 --patch-from={base}/{shard}"
             " {peers}/{shard}.zst -o {out}/{shard}"),
        ):
            if self.have(name):
                yield Command(shown, line, made, is_patched, self.patches.get(name))
        if self.have("b3sum"):
            yield Command("b3sum", "b3sum {base}/*.safetensors")
        if self.arguments.venv:
            yield from self.python(fresh)

    def nestpatch(self, fresh, is_patched):
        def apply(patch, rest):
            return f"{{nestpatch}} apply {{{patch}}} {rest} --key {{key}}.pub -q"

        whole, one = (Path(self.paths[name]).stat().st_size for name in ("all_patch", "one_patch"))
        is_one = "cmp {one}/{shard} {out}/{shard}"
        changed, restored = "cmp {patched}/{shard} {place}/{shard}", "cmp {base}/{shard} {place}/{shard}"
        yield Command("nestpatch apply --in-place", apply("all_patch", "{place} --in-place"), [], changed, whole)
        yield Command("nestpatch status", "{nestpatch} status {place} -q")
        yield Command("nestpatch revert --in-place", "{nestpatch} revert {place} --in-place -q", [], restored)
        yield Command("nestpatch apply -o", apply("all_patch", "{base} -o {out}"), fresh, is_patched, whole)
        yield Command("nestpatch apply -o, one shard", apply("one_patch", "{base} -o {out}"), fresh, is_one, one)
        if self.verb("apply", "--link"):
            line = apply("all_patch", "{base} -o {out} --link")
            yield Command("nestpatch apply -o --link", line, fresh, is_patched, whole)
            line = apply("one_patch", "{base} -o {out} --link")
            yield Command("nestpatch apply -o --link, one shard", line, fresh, is_one, one)
        else:
            self.missing.append("nestpatch apply --link, which this nestpatch lacks")
        line = "{nestpatch} verify {all_patch} --checkpoint {base} --key {key}.pub -q"
        yield Command("nestpatch verify --checkpoint", line)
        if self.verb("audit"):
            yield Command("nestpatch audit", AUDIT)
        else:
            self.missing.append("nestpatch audit, which this nestpatch lacks")
        line = EXTRACT.replace("{tuned}", "{patched}").replace("{patch}", "{new_patch}")
        yield Command("nestpatch extract", line, ["rm -f {new_patch}"], None, whole)

    def python(self, fresh):
        """Programs that load the whole model: from the virtual environment, kept off any network."""
        venv = self.arguments.venv.absolute() / "bin"
        adapter = (Path(self.paths["adapter"]) / "adapter_model.safetensors").stat().st_size
        offline = "HF_HUB_OFFLINE=1 "
        if works(f"{venv}/python", "-c", "import peft, transformers, torch"):
            Path(self.paths["script"]).write_text(PEFT)
            line = f"{offline}{venv}/python {{script}} {{base}} {{adapter}} {{out}}"
            yield Command("PEFT load, merge, save", line, fresh, None, adapter)
        else:
            self.missing.append("PEFT: the virtual environment lacks peft, transformers or torch")
        if works(f"{venv}/mergekit-yaml", "--help"):
            Path(self.paths["recipe"]).write_text(self.fill(
                "models:\n  - model: {base}+{adapter}\n    parameters: {{weight: 1.0}}\n"
                "merge_method: linear\ndtype: bfloat16\n"))
            line = f"{offline}{venv}/mergekit-yaml {{recipe}} {{out}} --no-copy-tokenizer --lora-merge-cache {{cache}}"
            yield Command("mergekit base + LoRA", line, fresh + ["rm -rf {cache}"], None, adapter)
        else:
            self.missing.append("mergekit, which the virtual environment lacks")

    def have(self, program):
        found = shutil.which(program)
        if not found:
            self.missing.append(f"{program}, which is not installed")
        return found

    # The rounds.

    def measure(self):
        self.all = list(self.commands())
        if self.arguments.only:
            words = ["cp -r", *self.arguments.only]
            self.all = [command for command in self.all if any(word in command.name for word in words)]
        for number in range(1, self.arguments.rounds + 1):
            for command in list(self.all):
                # A virtual machine hands memory that was free for a while back to its host, and is slow to regain it.
                for line in ["rm -rf {out}", "cp -r {base} {out} && rm -r {out}", *command.before]:
                    self.run(line)
                os.sync()
                run = timed(self.fill(command.line))
                if run["code"]:
                    self.failed(command, run)
                    continue
                if command.after and number == 1:
                    self.run(command.after)
                command.runs.append(run)
                say(f"round {number}: {command.name}: {run['wall']:.3f} s")
        self.run("rm -rf {out} {cache}")

    def failed(self, command, run):
        """What we measure must work; a peer may not, and is then passed over."""
        told = f"{command.name} failed ({run['code']}): {self.fill(command.line)}\n{run['stderr']}"
        if command.name.startswith(("cp", "nestpatch")):
            sys.exit(told)
        say(told)
        self.all.remove(command)
        self.missing.append(f"{command.name}, which failed")

    def report(self):
        first = {command.name: command for command in self.all}
        # A child begins as a copy of this program, and the system counts that.
        floor = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        rows = [["what", "patch, bytes", "s", "x cp -r", "x cp -r and sync", "CPU s", "peak MiB", "own MiB"]]
        for command in self.all:
            median = {key: statistics.median(run[key] for run in command.runs) for key in FIGURES}
            peak = median["peak"] if median["peak"] > floor else median["high"]
            rows.append([
                command.name, f"{command.patch:,}" if command.patch else "", f"{median['wall']:.3f}",
                ratio(command, first.get("cp -r")), ratio(command, first.get("cp -r and sync")),
                f"{median['cpu']:.2f}", f"{peak / MIB:.1f}", f"{median['own'] / MIB:.1f}",
            ])
        size = sum(path.stat().st_size for path in Path(self.paths["base"]).iterdir())
        rounds = self.arguments.rounds
        print(f"\nCheckpoint of {size:,} bytes, {os.cpu_count()} processors, medians of {rounds} rounds.\n")
        for number, row in enumerate(rows):
            print("| " + " | ".join(row) + " |")
            if number == 0:
                print("|---|" + "---:|" * (len(row) - 1))
        if self.missing:
            print(f"\nNot measured: {'; '.join(self.missing)}.")
        results = {command.name: command.runs for command in self.all}
        (self.work / "results.json").write_text(json.dumps(results, indent=1))


def ratio(command, other):
    if not other:
        return ""
    return f"{statistics.median(one['wall'] / two['wall'] for one, two in zip(command.runs, other.runs)):.3f}"


def works(*command):
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def say(text):
    print(text, file=sys.stderr, flush=True)


# One command, its time and its memory.


def timed(line):
    with tempfile.TemporaryFile() as errors:
        begun = time.monotonic()
        child = subprocess.Popen(["sh", "-c", line], stdout=subprocess.DEVNULL, stderr=errors)
        sampler = Sampler(child.pid)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.monotonic() - begun
        child.returncode = os.waitstatus_to_exitcode(status)
        sampler.stop()
        errors.seek(max(0, errors.seek(0, os.SEEK_END) - 4000))
        return {
            "wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss * 1024, "own": sampler.own,
            "high": sampler.high, "code": child.returncode, "stderr": errors.read().decode(errors="replace"),
        }


class Sampler(threading.Thread):
    """Looks at a process and those it started, again and again, until told to stop."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.own, self.high, self.over = pid, 0, 0, threading.Event()
        self.start()

    def run(self):
        while not self.over.wait(SAMPLE_S):
            seen = [memory(pid) for pid in family(self.pid)]
            self.own = max(self.own, sum(own for own, _ in seen))
            self.high = max([self.high, *(high for _, high in seen)])

    def stop(self):
        self.over.set()
        self.join()


def memory(pid):
    """Resident bytes of a process that no file stands behind, and the most it ever had of any kind."""
    amounts = {"RssAnon": 0, "RssShmem": 0, "VmHWM": 0}
    try:
        with open(f"/proc/{pid}/status") as file:
            for line in file:
                name, _, amount = line.partition(":")
                if name in amounts:
                    amounts[name] = int(amount.split()[0]) * 1024
    except OSError:
        # It is over.
        pass
    return amounts["RssAnon"] + amounts["RssShmem"], amounts["VmHWM"]


def family(pid):
    found = [pid]
    for parent in found:
        try:
            tasks = os.listdir(f"/proc/{parent}/task")
            for task in tasks:
                with open(f"/proc/{parent}/task/{task}/children") as file:
                    found.extend(map(int, file.read().split()))
        except OSError:
            continue
    return found


if __name__ == "__main__":
    main()
