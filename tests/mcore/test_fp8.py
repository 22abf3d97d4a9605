"""FP8: what its GEMMs ask of micro-batches and models, and weights that are held in it, by stand-ins."""

from __future__ import annotations

import sys
from types import MethodType, SimpleNamespace

import pytest
import torch

from megatron_gopd.config import Layout
from megatron_gopd.config.schema import Fp8
from megatron_gopd.data.packing import Row
from megatron_gopd.errors import UserError
from megatron_gopd.mcore import fp8
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.mcore.model import Model
from megatron_gopd.mcore.offload import Offloader
from megatron_gopd.mcore.settings import transformer_config
from megatron_gopd.policies.micro_batches import micro_batch_of
from tests.tiny_models import EXPERTS, SIZES

DENSE = Architecture.from_dict(SIZES | {"model_type": "qwen3", "head_dim": 16}, "x")
MIXTURE = Architecture.from_dict(SIZES | {"model_type": "qwen3_moe"} | EXPERTS, "x")


def model_of(layout: str, recipe: str, cp_rank: int = 0) -> Model:
    layout = Layout.parse(layout)
    groups = SimpleNamespace(cp=SimpleNamespace(size=lambda: layout.cp, rank=lambda: cp_rank))
    config = transformer_config(DENSE, layout, "bfloat16", fp8=Fp8(recipe=recipe))
    return Model(None, DENSE, config, layout, groups)


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize(
    "layout", ["", "tp=4", "tp=4,sequence_parallel=true", "cp=2", "tp=2,cp=4,sequence_parallel=true"]
)
@pytest.mark.parametrize(
    ("recipe", "multiple"), [("tensorwise", 16), ("delayed", 16), ("mxfp8", 32), ("blockwise", 128)]
)
def test_every_rank_multiplies_as_many_tokens_as_the_recipe_takes(recipe, multiple, layout, rows):
    batch = [Row([1] * 7, [2] * (10 + 13 * row)) for row in range(rows)]
    for cp_rank in range(Layout.parse(layout).cp):
        model = model_of(layout, recipe, cp_rank)
        tokens = len(micro_batch_of(model, range(rows), batch).tokens)
        of_rank, left = divmod(tokens, model.layout.tp if model.config.sequence_parallel else 1)
        assert (left, of_rank % multiple) == (0, 0)
        assert of_rank


def test_without_fp8_nothing_is_padded():
    config = transformer_config(DENSE, Layout(), "bfloat16")
    assert Model(None, DENSE, config, Layout(), None).token_multiple == 1


def test_a_cut_that_fp8_cannot_multiply_is_refused_with_the_size():
    expected = (
        "student: fp8.recipe mxfp8 multiplies in blocks of 32 features, and the feed-forward size on a rank is 24"
    )
    with pytest.raises(UserError, match=expected):
        fp8.check_fp8(Fp8(recipe="mxfp8"), "bfloat16", DENSE, Layout(tp=4), "student")


def test_experts_are_measured_by_their_own_size():
    with pytest.raises(UserError, match="the feed-forward size of an expert on a rank is 24"):
        fp8.check_fp8(Fp8(recipe="tensorwise"), "bfloat16", MIXTURE, Layout(etp=2), "student")


@pytest.fixture
def hopper(monkeypatch):
    """A GPU and a Transformer Engine that have FP8, but not in blocks of 32."""
    manager = SimpleNamespace(
        is_fp8_available=lambda: (True, ""),
        is_fp8_block_scaling_available=lambda: (True, ""),
        is_mxfp8_available=lambda: (False, "Device compute capability 10.0 or higher required."),
    )
    stand_in = SimpleNamespace(FP8GlobalStateManager=manager)
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch.fp8", stand_in)
    monkeypatch.setattr(fp8, "have_te", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "H100")


@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise"])
def test_a_recipe_that_the_gpu_has_is_taken(hopper, recipe):
    fp8.check_fp8_here(Fp8(recipe=recipe), "student")


def test_a_recipe_that_the_gpu_lacks_is_refused_in_the_librarys_words(hopper):
    with pytest.raises(
        UserError, match="mxfp8 does not run on this GPU, H100: Device compute capability 10.0 or higher"
    ):
        fp8.check_fp8_here(Fp8(recipe="mxfp8"), "student")


class Quantised(torch.nn.Parameter):
    """As Transformer Engine's: values in other tensors, and what it was made of beside them."""

    def __new__(cls, value):
        made = super().__new__(cls, torch.zeros_like(value))
        made.rows, made.columns = (value / 2).to(torch.int8), None
        made._high_precision_init_val = torch.full_like(value, torch.nan)
        made.get_high_precision_init_val = MethodType(lambda self: self._high_precision_init_val, made)
        return made

    def get_data_tensors(self):
        return self.rows, self.columns

    def dequantize(self):
        return self.rows.float() * 2


def test_master_weights_start_from_what_was_loaded_not_from_what_the_parameter_was_made_of():
    param, loaded = Quantised(torch.tensor([2.0, 4.0])), torch.tensor([2.5, 4.5])
    fp8.start_master_from(param, loaded)
    assert torch.equal(param.get_high_precision_init_val(), loaded)


def test_an_ordinary_parameter_has_no_other_start():
    param = torch.nn.Parameter(torch.ones(2))
    fp8.start_master_from(param, torch.zeros(2))
    assert torch.equal(param, torch.ones(2))


def test_collectives_get_the_values_of_a_quantised_weight():
    assert torch.equal(fp8.plain(Quantised(torch.tensor([2.0, 4.0]))), torch.tensor([2.0, 4.0]))


def test_quantised_weights_wait_on_the_host_too():
    param = Quantised(torch.tensor([2.0, 4.0]))
    offloader = Offloader(lambda: [param])
    assert offloader.release() == 2
    assert param.rows.untyped_storage().nbytes() == 0
    offloader.restore()
    assert torch.equal(param.dequantize(), torch.tensor([2.0, 4.0]))
