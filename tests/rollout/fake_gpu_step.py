"""A decoding step as a GPU captures it, on tensors of a GPU that is not there.

    LD_PRELOAD=cuda_guard.so python fake_gpu_step.py HF_FOLDER

Fake tensors know where they would be and refuse to meet one of another device; they have no values, so whatever waits
for one, or makes a shape of one, fails. Prints JSON: how often each operation is called, and where the slots are.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import fields

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.initialization import no_init_weights

from megatron_gopd.data.buckets import Bucket
from megatron_gopd.rollout.fixed_batch import Room
from megatron_gopd.rollout.fixed_layers import fuse
from megatron_gopd.rollout.fixed_step import step
from megatron_gopd.rollout.grouped_attention import NAME

ROWS, TOKENS, PROMPT = 8, 128, 5


class Counted(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func.name()] += 1
        return func(*args, **(kwargs or {}))


def main(folder: str) -> dict:
    config, gpu, bucket = AutoConfig.from_pretrained(folder), torch.device("cuda", 0), Bucket(ROWS, TOKENS)
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    FakeTensorMode.avoid_device_init = True  # or it makes a real tensor there first
    with torch.inference_mode(), FakeTensorMode():
        with gpu, no_init_weights():
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=NAME)
        fuse(model)
        room = Room(model, bucket)
        ids = torch.zeros(ROWS, PROMPT, dtype=torch.long, device=gpu)
        mask, positions = torch.ones_like(ids), torch.ones_like(ids)
        room.cache.begin(bucket)
        model.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=room.cache, use_cache=True
        )
        room.cache.prompts_end()
        with Counted() as counted:
            step(model, room.cache, slots := room.slots.of(bucket), greedy=False)
        where = {field.name: getattr(slots, field.name).device.type for field in fields(slots)}
    return {"calls": counted.calls, "where": where}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
