"""make bench-convert: conversion both ways, against safetensors alone reading and writing the same bytes.

Makes a random bf16 model of 2.2 GB in a temporary folder, converts it there and back in processes of their own, in
turns with safetensors, and compares the best time of each. All sides end with fsync, and remove what they wrote in the
round before right before their clock starts: memory that is free for seconds may have gone back to a virtual machine's
host, and the page cache waits for it. Ends with one line that sums up; exit code 0 when every bound holds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROUNDS, SLOWER, SHARDS = 5, 2.0, 2.0  # bounds: times as long as safetensors alone; shards in memory above the imports
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
CHILD = """
import shutil, sys, time
from pathlib import Path
from megatron_gopd.ranks import ranks
def peak(): return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
with ranks():
    from megatron_gopd.mcore import convert
    shutil.rmtree(sys.argv[3], ignore_errors=True)
    before, started = peak(), time.perf_counter()
    getattr(convert, sys.argv[1])(Path(sys.argv[2]), Path(sys.argv[3]), **eval(sys.argv[4]))
    print("figures", time.perf_counter() - started, (peak() - before) * 1024)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shard-gb", type=float, default=0.5, help="bytes of a shard, in 10^9")
    parser.add_argument("--layers", type=int, default=CONFIG["num_hidden_layers"])
    parser.add_argument("--folder", type=Path, help="where to work; default: the system's temporary folder")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-convert-", dir=arguments.folder))
    try:
        return measure(folder, CONFIG | {"num_hidden_layers": arguments.layers}, int(arguments.shard_gb * 1e9))
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, config: dict, shard_bytes: int) -> int:
    hf, megatron, back = folder / "hf", folder / "megatron", folder / "back"
    make_model(hf, config, shard_bytes)
    shards = sorted(hf.glob("*.safetensors"))
    shard = max(path.stat().st_size for path in shards)
    total = sum(path.stat().st_size for path in shards)
    print(f"model: {total / 1e9:.2f} GB bf16 in {len(shards)} shards, the largest {shard / 1e9:.2f} GB")
    directions = {
        "hf_to_megatron": (hf, megatron, {}),
        "megatron_to_hf": (megatron, back, {"shard_bytes": shard_bytes}),
    }
    times = {name: [] for name in (*directions, "safetensors alone")}
    memory = dict.fromkeys(directions, 0.0)
    for _ in range(ROUNDS):  # in turns: the machine's pace wanders
        for name, (source, target, options) in directions.items():
            times["safetensors alone"].append(safetensors_alone(shards, folder / "copy"))
            seconds, peak = convert(name, source, target, options)
            times[name].append(seconds)
            memory[name] = max(memory[name], peak)
    for name, each in times.items():
        print(f"{name}: " + ", ".join(f"{seconds:.2f}" for seconds in each) + " s")
    slower = {name: min(times[name]) / min(times["safetensors alone"]) for name in directions}
    held = {name: memory[name] / shard for name in directions}
    same = same_bytes(hf, back)
    ok = same and max(slower.values()) <= SLOWER and max(held.values()) <= SHARDS
    told = "; ".join(f"{name} {slower[name]:.2f}x, {held[name]:.2f} shards of memory" for name in directions)
    bounds = f"bounds {SLOWER}x the time of safetensors alone, {SHARDS} shards"
    print(f"bench-convert {'ok' if ok else 'FAILED'}: {told} ({bounds}); round trip {'equal' if same else 'DIFFERS'}")
    return 0 if ok else 1


def make_model(folder: Path, config: dict, shard_bytes: int) -> None:
    """Random weights of the shapes Megatron's own skeleton asks for; in a child, as it imports Megatron."""
    code = """
import json, sys
from pathlib import Path
import torch
from megatron_gopd.ranks import ranks
folder, config, shard_bytes = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
folder.mkdir()
(folder / "config.json").write_text(json.dumps(config, indent=2))
with ranks():
    from megatron_gopd.mcore.architecture import Architecture
    from megatron_gopd.mcore.save import write_weights
    from megatron_gopd.mcore.skeleton import build_skeleton
    shapes = [item for p in build_skeleton(Architecture.read(folder)).parameters for item in p.hf_shapes.items()]
    write_weights(((n, torch.randn(s, dtype=torch.bfloat16)) for n, s in shapes), folder, "bfloat16", shard_bytes)
"""
    child(code, folder, json.dumps(config), shard_bytes)


def convert(name: str, source: Path, target: Path, options: dict) -> tuple[float, float]:
    """Seconds and bytes of peak resident memory (VmHWM, mapped files included) beyond the imports."""
    output = child(CHILD, name, source, target, options)
    seconds, memory = next(line for line in output.splitlines() if line.startswith("figures")).split()[1:]
    return float(seconds), float(memory)


def safetensors_alone(shards: list[Path], folder: Path) -> float:
    """Seconds to read every shard and write it again."""
    code = """
import os, shutil, sys, time
from safetensors.torch import load_file, save_file
shutil.rmtree(sys.argv[1], ignore_errors=True)
os.mkdir(sys.argv[1])
started = time.perf_counter()
for source, target in zip(sys.argv[2::2], sys.argv[3::2]):
    save_file(load_file(source), target)
    descriptor = os.open(target, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
print("figures", time.perf_counter() - started)
"""
    output = child(code, folder, *(path for shard in shards for path in (shard, folder / shard.name)))
    return float(output.split()[-1])


def child(code: str, *arguments) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"bench-convert FAILED: a child process ended with {done.returncode}")
    return done.stdout


def same_bytes(one: Path, other: Path) -> bool:
    """Whether two folders hold the same tensors, bit by bit."""
    import torch

    sys.path.insert(0, str(ROOT))
    from megatron_gopd.mcore.hf_folder import HFFolder

    mine, theirs = HFFolder(one), HFFolder(other)
    return mine.stored.keys() == theirs.stored.keys() and all(
        torch.equal(mine.tensor(name).view(torch.int16), theirs.tensor(name).view(torch.int16)) for name in mine.stored
    )


if __name__ == "__main__":
    sys.exit(main())
