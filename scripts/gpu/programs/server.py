"""One SGLang server through the project's client: server.py MODEL DTYPE OPTIONS LOG FILE

Starts it, samples and scores, replaces a tensor of its weights and puts it back, has it give its memory away and take
it again. Writes {figure: value}. OPTIONS: of sglang.launch_server, as JSON.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import pickle
import random
import sys
import time
from contextlib import asynccontextmanager
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing  # noqa: F401  (teaches ForkingPickler to hand over tensors of a GPU)
from safetensors import safe_open

from megatron_gopd.servers.client import Answer, SGLangClient
from megatron_gopd.servers.command import command, environment
from megatron_gopd.servers.process import ServerProcess, free_port

START_S, ROWS, PROMPT, RESPONSE = 240, 16, (5, 60), 32
CHANGED = "model.norm.weight"
SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "max_new_tokens": RESPONSE, "ignore_eos": True}
TAGS = {"tags": ["kv_cache", "weights"]}


@asynccontextmanager
async def serving(model: str, dtype: str, options: dict, log: Path):
    """A client of a server that answers, and the seconds until it did."""
    port, start = free_port(), time.monotonic()
    process = ServerProcess(command(model, port, dtype, options), environment(), log)
    client = SGLangClient(f"http://127.0.0.1:{port}")
    try:
        while not await client.healthy():
            if process.exit_code is not None or time.monotonic() - start > START_S:
                raise RuntimeError(f"no server after {time.monotonic() - start:.0f} s: {process.last_words()}")
            await asyncio.sleep(0.5)
        yield client, time.monotonic() - start
    finally:
        await client.close()
        process.stop()


class Rows:
    """Prompts, and what the server sampled after them."""

    def __init__(self, client: SGLangClient, words: int):
        draw = random.Random(0)
        self.client = client
        self.prompts = [[draw.randrange(3, words) for _ in range(draw.randint(*PROMPT))] for _ in range(ROWS)]
        self.answers: list[Answer] = []

    async def sample(self) -> None:
        self.answers = await asyncio.gather(*(self.client.generate(prompt, SAMPLING) for prompt in self.prompts))

    async def scores(self) -> np.ndarray:
        pairs = zip(self.prompts, self.answers, strict=True)
        return np.concatenate(await asyncio.gather(*(self.client.score(p, answer.tokens) for p, answer in pairs)))

    def sampled(self) -> np.ndarray:
        return np.concatenate([answer.logprobs for answer in self.answers])


async def replace_weight(client: SGLangClient, tensor: torch.Tensor, version: str) -> None:
    """By reference on a GPU, by value elsewhere."""
    packed = io.BytesIO()
    (ForkingPickler if tensor.is_cuda else pickle.Pickler)(packed, 4).dump([(CHANGED, tensor)])
    body = {"serialized_named_tensors": [base64.b64encode(packed.getbuffer()).decode()], "flush_cache": True}
    await client.post("/begin_weight_update", {})
    await client.post("/update_weights_from_tensor", body | {"weight_version": version})
    await client.post("/end_weight_update", {})


def weight_of(model: str) -> torch.Tensor:
    files = Path(model).glob("*.safetensors")
    (file,) = [file for file in files if CHANGED in safe_open(file, "pt").keys()]  # noqa: SIM118
    return safe_open(file, "pt", device="cuda" if torch.cuda.is_available() else "cpu").get_tensor(CHANGED)


def used() -> float:
    """GiB of the GPU, of whoever."""
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**30


def apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max())


async def weights(rows: Rows, model: str, before: np.ndarray) -> dict:
    """New ones are used, and told; the old ones are back afterwards."""
    right = weight_of(model)
    await replace_weight(rows.client, wrong := right * 2, "doubled")
    found = {"new weights": apart(before, await rows.scores())}
    found["version"] = (await rows.client.generate(rows.prompts[0], SAMPLING)).versions[0][0]
    await replace_weight(rows.client, right, "restored")
    del wrong  # a server maps it until then
    return found | {"old weights": apart(before, await rows.scores())}


async def memory(rows: Rows, before: np.ndarray) -> dict:
    """GiB held, and given back for a while."""
    held = used()
    await rows.client.post("/pause_generation", {"mode": "retract"})
    await rows.client.post("/release_memory_occupation", TAGS)
    freed = held - used()
    await rows.client.post("/resume_memory_occupation", TAGS)
    await rows.client.post("/continue_generation", {})
    return {"held": held, "freed": freed, "after memory": apart(before, await rows.scores())}


async def main(model: str, dtype: str, options: dict, log: Path, file: Path) -> None:
    words = json.loads(Path(model, "config.json").read_text())["vocab_size"]
    async with serving(model, dtype, options, log) as (client, start):
        rows = Rows(client, words)
        await rows.sample()
        before = await rows.scores()
        found = {"start": start, "sampled": float(np.abs(rows.sampled() - before).mean())}
        found |= await weights(rows, model, before)
        if torch.cuda.is_available():
            found |= await memory(rows, before)
    file.write_text(json.dumps(found))


if __name__ == "__main__":
    given = sys.argv[1:]
    asyncio.run(main(given[0], given[1], json.loads(given[2]), Path(given[3]), Path(given[4])))
