"""Tiny models of every supported family, as transformers saves them."""

from __future__ import annotations

from pathlib import Path

VOCABULARY = 131  # odd: tensor parallelism has to pad it
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "initializer_range": 0.08,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
FAMILIES = {
    "llama": ("LlamaConfig", {}),
    "llama3": ("LlamaConfig", {"rope_parameters": LLAMA3_ROPE, "max_position_embeddings": 16384}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
}
NAMES = [f"{family}-{head}" for family in FAMILIES for head in ("tied", "untied")]
EXPERTS = {
    "head_dim": 16,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
MIXTURES = ["qwen3moe-untied", "qwen3moe-tied"]
# rows of tests are longer than the original positions, so that a scaling that is not computed shows
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}
OF_ROPE = {"yarn": YARN, "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}
_SCALED = ("llama-untied", "qwen2-untied", "qwen3-tied", "qwen3moe-untied")
SCALED = [f"{name}-{kind}" for kind in OF_ROPE for name in _SCALED]


def save_tiny(folder: Path, name: str, **save) -> Path:
    """Write the model `name` (of NAMES, MIXTURES or SCALED) to folder/name.

    Norms and biases are jittered away from 1 and 0.
    Call it where no process group is initialised: transformers then saves on rank 0 only.
    """
    import torch
    import transformers

    family, head, *scaling = name.split("-")
    kind, settings = FAMILIES.get(family, ("Qwen3MoeConfig", EXPERTS))
    settings = settings | ({"rope_parameters": dict(OF_ROPE[scaling[0]])} if scaling else {})
    config = getattr(transformers, kind)(**SIZES, **settings, tie_word_embeddings=head == "tied")
    torch.manual_seed([*NAMES, *MIXTURES, *SCALED].index(name))
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name or "bias" in parameter_name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder / name, **save)
    return folder / name


def load_plain(folder: Path):
    """The same model in transformers, float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def with_single_experts(tensors: dict) -> dict:
    """Named tensors of a transformers model, each expert under its own published name (in memory they are fused)."""
    single = {}
    for name, tensor in tensors.items():
        prefix, _, kind = name.rpartition(".")
        if kind == "gate_up_proj":
            for number, fused in enumerate(tensor):
                half = len(fused) // 2
                single[f"{prefix}.{number}.gate_proj.weight"] = fused[:half]
                single[f"{prefix}.{number}.up_proj.weight"] = fused[half:]
        elif kind == "down_proj":
            single |= {f"{prefix}.{number}.down_proj.weight": expert for number, expert in enumerate(tensor)}
        else:
            single[name] = tensor
    return single
