"""The SGLang engine in numbers, on real servers: agreement, weight updates, throughput, overlap.

Called by make bench-sglang; prints tables and one line that sums up; exit code 0 when every bound holds.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.chat_models import save_chat_model, write_questions  # noqa: E402

AGREEMENT, THROUGHPUT = 2e-5, 0.95
ROUNDS, CONCURRENCY, TOKENS, BUCKET = 5, 64, 128, 2**21


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {
            "Qwen3": save_chat_model(folder / "qwen3", seed=1),
            "Llama": save_chat_model(folder / "llama", seed=2, family="Llama"),
        }
        write_questions(folder / "train.jsonl", 96)
        from megatron_gopd.ranks import ranks

        with ranks():
            worst = {family: agreement(folder, family, models) for family in models}
            for family, gap in worst.items():
                print(f"{family}: largest |log-prob of engine - trainer| over 10 steps with an update each: {gap:.1e}")
            share = measure(folder, models)
    holds = max(worst.values()) <= AGREEMENT and share >= THROUGHPUT
    print(
        f"bench-sglang: log-probs within {max(worst.values()):.1e} (bound {AGREEMENT:g}), throughput {share:.2f} of a "
        f"plain load's (bound {THROUGHPUT}): {'holds' if holds else 'MISSED'}"
    )
    return int(not holds)


def configuration(folder: Path, name: str, student: Path, teacher: Path, **rollout):
    from megatron_gopd.config import Config

    fp32 = {"dtype": "float32"}
    return Config.model_validate(
        {
            "run": {"name": name, "steps": 10, "folder": str(folder / "runs")},
            "student": {"model": str(student)} | fp32,
            "teachers": {"one": {"model": str(teacher)} | fp32},
            "data": {"train": str(folder / "train.jsonl"), "batch_size": 8},
            "rollout": {"engine": "sglang", "max_response_tokens": 48, "sglang": {"verify_every": 1}} | rollout,
            "optimizer": {"lr": 1e-3},
            "checkpoint": {"every": 0},
        }
    )


def agreement(folder: Path, family: str, models: dict[str, Path]) -> float:
    from megatron_gopd.training.distill import distill

    other = next(path for name, path in models.items() if name != family)
    distill(configuration(folder, family, models[family], other))
    rows = (folder / "runs" / family / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 10
    return max(json.loads(row)["train_rollout_logprob_abs_diff_max"] for row in rows)


def measure(folder: Path, models: dict[str, Path]) -> float:
    """Updates, throughput and overlap with one server of a larger model; returns our share of a plain load's rate."""
    from megatron_gopd.rollout.responses import PLAIN
    from megatron_gopd.rollout.server_weights import WAYS, ServerWeights
    from megatron_gopd.runs import Spans
    from megatron_gopd.training.job import build_job

    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6}
    student = save_chat_model(folder / "larger", seed=3, **sizes)
    teacher = save_chat_model(folder / "larger-teacher", seed=4, **sizes)

    def settings(**servers):
        keys = {"verify_every": 0} | servers
        return configuration(folder, "larger", student, teacher, max_response_tokens=TOKENS, sglang=keys)

    job = build_job(settings())
    with job.serving(folder / "logs"):
        engine = job.rollout
        for name in WAYS:
            engine._weights.close()
            engine._weights = ServerWeights(settings(sync=name, bucket_bytes=BUCKET), engine._pool, [], [0])
            engine.sync(job.student)  # connections are made
            Spans().take()
            table(name, seconds(lambda: engine.sync(job.student)))
            table("  of which servers are paused", Spans().take()["servers_paused"] / ROUNDS)
        bytes_ = sum(tensor.nbytes for _, tensor in job.student.export())
        source, target = student / "model.safetensors", Path("/dev/shm/bench-sglang")
        table(f"(plain copy of the {bytes_ / 2**20:.0f} MiB to /dev/shm)", seconds(lambda: shutil.copy(source, target)))
        target.unlink()
        prompts = job.loader.prompts[:CONCURRENCY]
        engine.stop_ids, PLAIN["ignore_eos"] = [], True  # responses of one length: what differs is the client
        ours, plain = turns(lambda: through_engine(engine, prompts), lambda: plainly(engine, prompts))
        table("rollout through the engine", ours, "response tokens/s")
        table("the same load, aiohttp alone", plain, "response tokens/s")
        together, apart = turns(lambda: step(job, prompts, True), lambda: step(job, prompts, False))
        table("rollout with scoring overlapped", together)
        table("rollout, then scoring", apart)
    return ours / plain


def table(what: str, value: float, unit: str = "s") -> None:
    print(f"  {what:46} {value:10.3f} {unit}", flush=True)


def seconds(function: Callable) -> float:
    taken = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def turns(one: Callable[[], float], other: Callable[[], float]) -> tuple[float, float]:
    """Medians of what each returns, the two taking turns after a round to warm up."""
    results = [(one(), other()) for _ in range(ROUNDS + 1)][1:]
    return statistics.median(a for a, _ in results), statistics.median(b for _, b in results)


def through_engine(engine, prompts) -> float:
    start = time.perf_counter()
    tokens = sum(len(each) for chunk in engine.generate(prompts, 1) for each in chunk)
    return tokens / (time.perf_counter() - start)


def plainly(engine, prompts) -> float:
    """What sglang.bench_serving does: aiohttp, as many requests at a time, nothing done with the answers."""
    import aiohttp

    (server,) = engine._pool.servers

    async def one(session, prompt) -> int:
        sampling = {"max_new_tokens": TOKENS, "temperature": 1.0, "ignore_eos": True}
        body = {"input_ids": prompt.student_tokens, "sampling_params": sampling}
        async with session.post(f"{server.url}/generate", json=body | {"return_logprob": True}) as reply:
            return len((await reply.json())["output_ids"])

    async def load() -> int:
        asked = {"headers": {"Authorization": f"Bearer {server.token}"}, "raise_for_status": True}
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONCURRENCY), **asked) as session:
            return sum(await asyncio.gather(*(one(session, prompt) for prompt in prompts)))

    start = time.perf_counter()
    return asyncio.run(load()) / (time.perf_counter() - start)


def step(job, prompts, overlapped: bool) -> float:
    start = time.perf_counter()
    chunks = job.rollout.generate(prompts, 1)
    for chunk in chunks if overlapped else list(chunks):
        job.scorers.score(chunk)
    job.scorers.wait()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
