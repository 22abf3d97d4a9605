"""make bench-kernel: the LM-head kernel beside its peers, as ratios to one plain torch.mm of the same shape.

Every contender runs in a process of its own, in turns with torch.mm; time is CPU time on one thread and wall time on
more. Prints a table for every shape and number of threads, the workspace, and one line that sums up; exit code 0 when
every bound holds. Inputs are bf16; on a CPU without AVX-512 bf16 they are float32, and it reports and does not judge.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

SHAPES = {"A": (2048, 512, 32768), "B": (512, 1024, 151936), "C": (1024, 2560, 151936)}  # tokens, h, V
SCALED = (4608, 640, 9496)  # for the workspace: a quarter of (18432, 2560, 37984) each way
JUDGED = torch.cpu._is_avx512_bf16_supported()
DTYPE = torch.bfloat16 if JUDGED else torch.float32  # elsewhere torch.mm takes bf16 apart, and is no yardstick
DISTRIBUTION = [
    "ours_distribution",
    "ours_distribution_1",
    "ours_distribution_forward_kl",
    "ours_distribution_recompute",
]
FORWARD = ["ours", "naive", "torch", "liger", "cce"]
BOTH = ["ours_main_grad", "ours_fresh", "ours_recompute", *DISTRIBUTION, "naive", "torch", "liger", "cce"]
BOUNDS = {  # (contender, pass): time over torch.mm
    ("ours", "forward"): 1.05,
    ("ours_main_grad", "both"): 3.3,
    ("ours_fresh", "both"): 3.5,
    ("ours_distribution", "both"): 5.4,  # 3 heads: 3 products, 2 gradients, 8 %
}
FORWARD_MB = 16
WORKSPACE_GIB, DISTRIBUTION_GIB = 0.25, 0.45


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default="ABC")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="contenders, such as ours,ours_fresh")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(**json.loads(options.child))))
        return 0
    missed = []
    for shape in options.shapes:
        for threads in map(int, options.threads.split(",")):
            for what, names in (("forward", FORWARD), ("both", BOTH)):
                chosen = [name for name in names if not options.only or name in options.only.split(",")]
                rows = {name: in_a_process(shape, name, what, threads, options.rounds) for name in chosen}
                missed += show(shape, what, threads, rows)
    missed += workspace()
    verdict = "not judged: no AVX-512 bf16" if not JUDGED else "holds" if not missed else "MISSED " + "; ".join(missed)
    print(f"bench-kernel: {torch.__version__}, load {os.getloadavg()[0]:.1f}: {verdict}")
    return int(JUDGED and bool(missed))


def show(shape: str, what: str, threads: int, rows: dict[str, dict]) -> list[str]:
    """Print a table; return the bounds that were missed, which are those of one thread."""
    tokens, hidden, vocabulary = SHAPES[shape]
    where = f"{shape} = (T {tokens}, h {hidden}, V {vocabulary}), {DTYPE}, {what}, {threads} thread(s)"
    print(f"\n{where}, load {os.getloadavg()[0]:.1f}")
    print(f"{'':28} {'seconds':>8} {'/ torch.mm':>10} {'extra MB':>9} {'repeated MB':>11}")
    missed = []
    for name, row in rows.items():
        if "error" in row:
            print(f"{name:28} {row['error']}")
            missed += [f"{shape} {name}, {what}: {row['error']}"] if name.startswith("ours") else []
            continue
        bound = BOUNDS.get((name, what)) if threads == 1 else None
        broken = bound is not None and row["ratio"] > bound
        note = f"   bound {bound}{' MISSED' if broken else ''}" if bound else ""
        print(f"{name:28} {row['seconds']:8.3f} {row['ratio']:10.2f} {row['first_mb']:9.0f} {row['mb']:11.0f}{note}")
        if broken:
            missed.append(f"{shape} {name} {row['ratio']:.2f} > {bound}")
        if what == "forward" and name == "ours" and row["first_mb"] > FORWARD_MB:
            missed.append(f"{shape} forward takes {row['first_mb']:.0f} MB > {FORWARD_MB}")
    sys.stdout.flush()
    return missed


def workspace() -> list[str]:
    """The formula at a real shape, and measured at a scaled one."""
    from megatron_gopd.kernels.workspace import workspace_bytes

    print("\nworkspace, GiB a rank at T 18432, h 2560, V 151936, TP 4 | MB at T, h, V =", SCALED, ": formula, measured")
    missed = []
    for name, mode, holds in (
        ("ours_recompute", "recompute", False),
        ("ours_main_grad", "one_pass", False),
        ("ours_held", "one_pass", True),
        ("ours_distribution", "one_pass", False),
        ("ours_distribution_recompute", "recompute", False),
    ):
        heads = 2 if "distribution" in name else 0
        gib = workspace_bytes(18432, 2560, 151936, 4, mode, holds_weight_gradient=holds, targets=[2560] * heads) / 2**30
        of_scaled = {"itemsize": DTYPE.itemsize, "targets": [SCALED[1]] * heads}
        formula = workspace_bytes(*SCALED, 1, mode, holds_weight_gradient=holds, **of_scaled) / 2**20
        found = in_a_process("", name, "both", 1, 1)
        if "error" in found:
            missed.append(f"workspace of {name}: {found['error']}")
            continue
        measured = found["first_mb"]
        print(f"{name:28} {gib:6.3f} {formula:8.0f} {measured:8.0f}")
        bound = DISTRIBUTION_GIB if heads else WORKSPACE_GIB
        if not holds and gib > bound:
            missed.append(f"workspace of {name} {gib:.2f} GiB > {bound}")
        if measured > 1.1 * formula + (16 if heads else 8):  # holes that malloc keeps
            missed.append(f"workspace of {name}: {measured:.0f} MB measured, {formula:.0f} by formula")
    return missed


def in_a_process(shape: str, name: str, what: str, threads: int, rounds: int) -> dict:
    given = json.dumps({"shape": shape, "name": name, "what": what, "threads": threads, "rounds": rounds})
    done = subprocess.run([sys.executable, __file__, "--child", given], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {"error": (done.stderr.strip().splitlines() or ["no output"])[-1][:100]}


# ---------------------------------------------------------------- one contender, in its process
def measure(shape: str, name: str, what: str, threads: int, rounds: int) -> dict:
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    once = contender(name, what)
    with torch.set_grad_enabled(what == "both"):
        heads = 3 if "distribution" in name else 1
        once(*inputs(64, 64, 256, heads))  # imports, compilation, libraries
        tensors = inputs(*(SHAPES[shape] if shape else SCALED), heads)
        first_mb = peak_mb(lambda: once(*tensors))
        plain = plain_mm(*tensors[:2])
        plain()
        seconds, ratios, mb = [], [], peak_mb(lambda: once(*tensors))
        for _ in range(rounds):
            start = clock()
            plain()
            middle = clock()
            once(*tensors)
            seconds.append(clock() - middle)
            ratios.append(seconds[-1] / (middle - start))
    found = {"seconds": statistics.median(seconds), "ratio": statistics.median(ratios)}
    return found | {"first_mb": first_mb, "mb": mb}


def inputs(tokens: int, hidden: int, vocabulary: int, heads: int = 1):
    """x and w, targets, teacher's log-probs, main_grad; then x and w of the further heads."""
    torch.manual_seed(0)
    pairs = []
    for _ in range(heads):
        w = torch.empty(vocabulary, hidden, dtype=DTYPE)
        for rows in w.split(8192):
            rows.copy_(torch.randn(rows.shape) * hidden**-0.5)
        pairs.append((torch.randn(tokens, hidden).to(DTYPE), w))
    gradient = torch.zeros(vocabulary, hidden).fill_(0.0)  # main_grad, resident
    (x, w), *further = pairs
    rest = (tensor for pair in further for tensor in pair)
    return x, w, torch.randint(0, vocabulary, (tokens,)), -12 * torch.rand(tokens), gradient, *rest


def plain_mm(x, w):
    """The GEMM alone, in blocks of bounded memory."""
    block = min(16384, len(w))
    out = torch.empty(len(x), block, dtype=x.dtype)

    def run():
        with torch.no_grad():
            for rows in w.split(block):
                torch.mm(x, rows.T, out=out if len(rows) == block else out[:, : len(rows)].contiguous())

    return run


def peak_mb(run) -> float:
    """Resident memory above that before the call."""
    ctypes.CDLL(None).malloc_trim(0)  # what is free already would hide what is taken
    with contextlib.suppress(PermissionError):
        Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


def status(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def contender(name: str, what: str):
    if name.startswith("ours_distribution"):
        return ours_distribution(name)
    if name.startswith("ours"):
        return ours_forward if what == "forward" else ours_both(name)
    forward = {"naive": naive, "torch": torch_loss, "liger": liger_forward if what == "forward" else liger, "cce": cce}
    return (lambda x, w, y, *_: forward[name](x, w, y)) if what == "forward" else through_autograd(forward[name])


def ours_forward(x, w, y, *_):
    from megatron_gopd.kernels import linear_logprob

    return linear_logprob(x, w, y)


def ours_both(name: str):
    from megatron_gopd.kernels import linear_token_loss
    from megatron_gopd.objective import TokenRows, gopd_loss

    def run(x, w, y, teacher, main_grad):
        x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
        rows = TokenRows(torch.full((len(x),), 1 / len(x)), teacher, teacher)
        where = {} if name == "ours_fresh" else {"main_grad": main_grad}
        where |= {"main_grad_scale": 1.0} if name == "ours_main_grad" else {}
        mode = "recompute" if name == "ours_recompute" else "one_pass"
        linear_token_loss(x, w, y, gopd_loss(1.0, None), rows, mode=mode, **where).loss.backward()
        return x.grad, w.grad

    return run


def ours_distribution(name: str):
    """Against teacher and reference, or (_1) the teacher alone; into main_grad as early as the mode can."""
    from megatron_gopd.kernels import Target, TargetHead, linear_distribution_loss
    from megatron_gopd.objective import DistributionLoss, TokenRows

    def loss(divergence, logprobs, entropy, rows):
        return DistributionLoss((rows.weights * divergence).sum(), rows.weights, None, {})

    def run(x, w, y, _, main_grad, *heads):
        x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
        rows = TokenRows(torch.full((len(x),), 1 / len(x)))
        teacher, reference = (TargetHead(states, head, len(head)) for states, head in (heads[:2], heads[2:]))
        divergence = "forward_kl" if name.endswith("forward_kl") else "reverse_kl"
        lambda_, reference = (1.0, None) if name.endswith("_1") else (1.25, reference)
        target = Target(teacher, reference, lambda_, len(w), None, divergence)
        how = {"mode": "recompute"} if name.endswith("recompute") else {"main_grad_scale": 1.0}
        linear_distribution_loss(x, w, y, loss, rows, target, main_grad=main_grad, **how).loss.backward()
        return x.grad, w.grad

    return run


def through_autograd(forward):
    """The same loss through a peer's differentiable log-probs."""

    def run(x, w, y, teacher, _):
        x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
        logprobs = forward(x, w, y)
        (logprobs * (logprobs.detach().float() - teacher) / len(x)).sum().backward()
        return x.grad, w.grad

    return run


def naive(x, w, y):
    return (x @ w.T).float().log_softmax(-1).gather(1, y[:, None])[:, 0]


def torch_loss(x, w, y):
    options = torch.nn.LinearCrossEntropyOptions()
    return -torch.nn.functional.linear_cross_entropy(x, w, y, reduction="none", options=options).float()


def liger_forward(x, w, y):
    from liger_kernel.chunked_loss.fused_linear_ppo import _selective_logprob_forward

    return _selective_logprob_forward(x, w, y)[0]


def liger(x, w, y):
    from liger_kernel.chunked_loss.fused_linear_ppo import _ChunkedSelectiveLogProbFunction

    return _ChunkedSelectiveLogProbFunction.apply(x, w, y, None, 1.0, 4096)


def cce(x, w, y):
    from cut_cross_entropy import linear_cross_entropy

    return -linear_cross_entropy(x, w, y, reduction="none", impl="torch_compile")


if __name__ == "__main__":
    sys.exit(main())
