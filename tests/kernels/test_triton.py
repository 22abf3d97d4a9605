"""The Triton kernels without a GPU: interpreted against the oracle, and compiled ahead of time.

Triton lives in .venv-triton (scripts/install/triton.sh, make test), and a process either interprets or compiles.
"""

from __future__ import annotations

import json
import os
import subprocess

import pytest
import torch

from megatron_gopd.kernels import backend
from tests.ranks import ROOT

pytestmark = pytest.mark.timeout(900)  # the first run compiles for minutes on a busy machine; later ones read a cache
TRUNCATED = 2**-7  # of bf16: the interpreter truncates where a GPU rounds to nearest
PYTHON = ROOT / ".venv-triton" / "bin" / "python"


def in_triton(script: str, *arguments: str, interpret: bool) -> dict | list:
    """What a script prints as JSON, run where Triton is."""
    if not PYTHON.exists():
        pytest.fail("there is no .venv-triton: run scripts/install/triton.sh, or make test")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment |= {"TRITON_INTERPRET": "1"} if interpret else {}
    command = [str(PYTHON), "-W", "ignore", str(ROOT / script), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def interpreted():
    return in_triton("tests/kernels/triton_interpreted.py", interpret=True)


@pytest.fixture(scope="module")
def compiled():
    """The rows of every kernel and shipped tile, without the variants that only leave something out."""
    return in_triton("scripts/gpu/kernel_report.py", "--quick", "--json", interpret=False)


WITH_PRODUCTS = "statistics", "gradient", "product", "target", "sides", "distribution_gradient"
FP32 = ["fp32 one_pass", "fp32 recompute", "one token", "vocabulary of one", "aligned", "strided"]


@pytest.mark.parametrize("case", FP32)
@pytest.mark.parametrize("what", ["logprobs", "entropy", "grad_hidden", "grad_weight"])
def test_float32_equals_the_oracle(interpreted, case, what):
    assert interpreted["against_oracle"][case][what] < 1e-5


@pytest.mark.parametrize("case", ["bf16 one_pass", "bf16 recompute"])
def test_bf16_inputs_give_float32_values(interpreted, case):
    errors = interpreted["against_oracle"][case]
    assert max(errors["logprobs"], errors["entropy"]) < 1e-5


@pytest.mark.parametrize("case", ["bf16 one_pass", "bf16 recompute"])
def test_bf16_gradients(interpreted, case):
    errors = interpreted["against_oracle"][case]
    assert max(errors["grad_hidden"], errors["grad_weight"]) < TRUNCATED


@pytest.mark.parametrize("size", ["ragged", "described"])
def test_without_an_entropy_what_is_kept_needs_no_pass_of_its_own(interpreted, size):
    of_float32, of_bf16 = (interpreted["without_entropy"][f"{dtype} {size}"] for dtype in ("fp32", "bf16"))
    assert max(of_float32.values()) < 1e-5
    assert max(of_bf16["logprobs"], of_bf16["entropy"]) < 1e-5
    assert max(of_bf16["grad_hidden"], of_bf16["grad_weight"]) < TRUNCATED


@pytest.mark.parametrize("case", [f"{sm} {mode}" for sm in (90, 100) for mode in ("one_pass", "recompute")])
def test_operands_read_through_descriptors(interpreted, case):
    errors = interpreted["described"][case]
    assert max(errors["logprobs"], errors["entropy"]) < 1e-5
    assert max(errors["grad_hidden"], errors["grad_weight"]) < TRUNCATED


@pytest.mark.parametrize("loss", ["token_loss", "of_logprobs_alone"])
def test_logits_far_above_those_of_the_first_ids(interpreted, loss):
    errors = interpreted["far_above_the_sample"][loss]
    assert errors["logprobs"] < 1e-4  # near 230 a float32 logit steps by 1.5e-5
    assert max(errors["grad_hidden"], errors["grad_weight"]) < TRUNCATED


def test_torch_takes_every_product_that_the_table_gives_to_cublas(interpreted):
    found = interpreted["asked_of_cublas"]
    assert len(found) == 4
    assert not any(found.values())


def test_bf16_products_of_the_kernel_itself(interpreted):
    assert max(interpreted["own_products"][name] for name in ("grad_hidden", "grad_weight")) < TRUNCATED


def test_the_tile_of_blackwell_agrees(interpreted):
    errors = interpreted["blackwell"]
    assert max(errors["logprobs"], errors["entropy"]) < 1e-5
    assert max(errors["grad_hidden"], errors["grad_weight"]) < TRUNCATED


def test_logits_far_below_zero(interpreted):
    assert interpreted["far_below_zero"] < 1e-3  # near -1e4 a float32 log-sum-exp steps by 1e-3


def test_the_gradient_of_a_likely_target_does_not_cancel(interpreted):
    assert interpreted["sure_of_its_target"] < TRUNCATED


def test_offsets_beyond_32_bits(interpreted):
    assert interpreted["beyond_32_bits"] == 0


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_gradient_of_weight_is_added_to_a_given_buffer(interpreted, dtype):
    assert interpreted["into_given_buffer"][dtype] < TRUNCATED


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_value_that_is_not_finite_is_reported_with_its_row(interpreted, value):
    assert interpreted["refusals"][value].startswith("the log-prob of row 7 is not finite")


def test_a_target_outside_the_vocabulary_is_refused(interpreted):
    assert interpreted["refusals"]["target"] == "target 333 lies outside the vocabulary"


def test_bits_of_a_row_do_not_depend_on_its_neighbours(interpreted):
    assert interpreted["same_bits_alone"]


def test_rows_that_count_for_nothing_get_no_gradient(interpreted):
    assert interpreted["masked_rows"] == 0


def test_no_tokens(interpreted):
    assert interpreted["no_tokens"] == [0, 0.0]


DISTRIBUTIONS = [
    f"{kind} {mode}"
    for kind in ("reverse", "forward", "clamp", "lambda 1", "near")
    for mode in ("one_pass", "recompute")
]


@pytest.mark.parametrize("case", DISTRIBUTIONS)
def test_a_distribution_equals_the_oracle(interpreted, case):
    of_float32, of_bf16 = (interpreted["distribution"][f"{dtype} {case}"] for dtype in ("fp32", "bf16"))
    assert max(of_float32.values()) < 1e-5
    assert of_bf16["values"] < 1e-5
    assert max(of_bf16["grad_hidden"], of_bf16["grad_weight"]) < 6e-3  # truncated, as above


def test_a_distribution_of_no_tokens(interpreted):
    assert interpreted["distribution_of_nothing"] == 0


def test_without_triton_there_is_one_warning(monkeypatch):
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda _: None)
    with pytest.warns(UserWarning, match="triton is not installed"):
        assert backend._triton.__wrapped__(torch.device("cuda", 0)) is None


def test_the_kernels_spill_nothing_on_hopper(compiled):
    rows = [row for row in compiled if row["sm"] == 90]
    assert len(rows) == 42
    assert not [row for row in rows if row["spilled"]]


@pytest.mark.parametrize(("capability", "instruction"), [(80, "mma.sync"), (90, "wgmma"), (100, "tcgen05.mma")])
def test_bf16_products_use_the_tensor_cores(compiled, capability, instruction):
    products = [row for row in compiled if row["sm"] == capability and row["dtype"] == "bfloat16"]
    seen = {row["instruction"] for row in products if row["kernel"] in WITH_PRODUCTS}
    assert seen == {instruction}


def test_float32_products_are_not_cut_to_tf32(compiled):
    assert {row["instruction"] for row in compiled if row["dtype"] == "float32"} == {"-"}


@pytest.mark.parametrize(("capability", "limit"), [(80, 163 * 1024), (90, 227 * 1024), (100, 227 * 1024)])
def test_shared_memory_fits(compiled, capability, limit):
    assert max(row["shared"] for row in compiled if row["sm"] == capability) <= limit


@pytest.mark.slow
def test_no_variant_spills():
    assert not [row for row in in_triton("scripts/gpu/kernel_report.py", "--json", interpret=False) if row["spilled"]]
