"""Every published run constructs at its real size: all pipeline stages, and a sample of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_gopd.config import Layout, load_config, schema
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.mcore.model import build_model
from megatron_gopd.plan.decode import parameters
from megatron_gopd.plan.dry_run import construct, sample_ranks
from megatron_gopd.plan.fake_ranks import as_rank
from megatron_gopd.plan.levers import most_frugal
from megatron_gopd.plan.placement import place
from megatron_gopd.plan.planning import MODELS
from megatron_gopd.plan.roles import located, roles_of
from megatron_gopd.plan.shares import share

EXAMPLES = sorted(Path("examples/paper").glob("*.yaml"))
LARGE = [
    (64, "tp=2,ep=8"),
    (64, "tp=4,pp=2,ep=8,sequence_parallel=true"),
    (512, "tp=4,pp=4,ep=8,sequence_parallel=true"),
]


@pytest.mark.slow
@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_a_published_run_constructs(file):
    config = most_frugal(located(load_config(file), MODELS)[0])
    where = place(config, 32, 8)
    roles = roles_of(config)
    for rank in sample_ranks(roles, where.world):
        held = construct(config, roles, rank, where.world)
        assert set(held) == {role.name for role in roles}
        for role in roles:
            assert held[role.name].parameters > 0


@pytest.mark.parametrize(("world", "layout"), LARGE)
def test_all_ranks_of_a_replica_hold_the_whole_of_30b_a3b(world, layout):
    """One rank of every pipeline stage; what the others of its replica hold is as much."""
    folder, layout = MODELS / "Qwen3-30B-A3B", Layout.parse(layout)
    architecture, held = Architecture.read(folder), 0
    for stage in range(layout.pp):
        with as_rank(stage * world // layout.pp + world // layout.pp - 1, world):
            model = build_model(folder, layout, "bfloat16")
            named = dict(model.module.named_parameters())
        for name, param in named.items():
            cut = layout.ep * layout.etp if ".experts." in name else layout.tp if _is_cut(name) else 1
            held += param.numel() * cut
    assert held == parameters(architecture)


def _is_cut(name: str) -> bool:
    return name.endswith(("linear_qkv.weight", "linear_proj.weight", "embeddings.weight", "output_layer.weight"))


def test_shares_by_arithmetic_are_those_of_a_built_model():
    folder, layout = MODELS / "Qwen3-1.7B", Layout.parse("tp=2,pp=2,sequence_parallel=true")
    settings = schema.Model(model=str(folder), layout=layout)
    with as_rank(0, 8):
        model = build_model(folder, layout, "bfloat16")
        built = sum(param.numel() for param in model.module.parameters())
    computed = share(Architecture.read(folder), settings, 8, optimizer=None)
    assert computed.parameters == pytest.approx(built, rel=1e-3)
