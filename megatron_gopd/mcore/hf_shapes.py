"""The tensors that a config.json promises: Hugging Face names and shapes of a whole model."""

from __future__ import annotations

from megatron_gopd.mcore.architecture import Architecture

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

Shapes = dict[str, tuple[int, ...]]


def promised(architecture: Architecture) -> Shapes:
    """{name: shape}; experts one by one, a tied head left out."""
    hidden = architecture.hidden_size
    vocabulary = (architecture.vocab_size, hidden)
    shapes: Shapes = {EMBEDDING: vocabulary, "model.norm.weight": (hidden,)}
    if not architecture.tied:
        shapes[HEAD] = vocabulary
    of_layer = _of_layer(architecture)
    for layer in range(architecture.layers):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in of_layer.items()}
    return shapes


def _of_layer(architecture: Architecture) -> Shapes:
    hidden, head_dim = architecture.hidden_size, architecture.head_dim
    queries, keys = architecture.heads * head_dim, architecture.groups * head_dim
    shapes: Shapes = {f"{norm}_layernorm.weight": (hidden,) for norm in ("input", "post_attention")}
    for which, rows in (("q", queries), ("k", keys), ("v", keys)):
        shapes[f"self_attn.{which}_proj.weight"] = (rows, hidden)
        if architecture.qkv_bias:
            shapes[f"self_attn.{which}_proj.bias"] = (rows,)
    shapes["self_attn.o_proj.weight"] = (hidden, queries)
    if architecture.qk_norm:
        shapes |= {f"self_attn.{which}_norm.weight": (head_dim,) for which in "qk"}
    if architecture.experts is None:
        return shapes | _gated("mlp", hidden, architecture.ffn_size)
    shapes["mlp.gate.weight"] = (architecture.experts.count, hidden)
    for expert in range(architecture.experts.count):
        shapes |= _gated(f"mlp.experts.{expert}", hidden, architecture.experts.ffn_size)
    return shapes


def _gated(name: str, hidden: int, ffn: int) -> Shapes:
    rising = {f"{name}.{which}_proj.weight": (ffn, hidden) for which in ("gate", "up")}
    return rising | {f"{name}.down_proj.weight": (hidden, ffn)}
