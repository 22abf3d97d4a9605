"""Experts, context parallelism, rank spans and memory levers, against transformers and plain torch."""

from __future__ import annotations

import numpy as np
import pytest

from tests.policies.plain_student import plain_steps
from tests.policies.score_on_ranks import rows, score_all
from tests.policies.steps_on_ranks import export_to_first, take_all, take_steps
from tests.policies.test_scoring import plain_laws
from tests.ranks import on_ranks
from tests.tiny_models import save_tiny

MIXTURE, DENSE = "qwen3moe-untied", "qwen3-tied"
LAYOUTS = {
    MIXTURE: ["ep=2", "tp=2,etp=2", "cp=2", "pp=2", ""],
    DENSE: ["cp=2", "ranks=1-1"],
}
BUDGET = 400
SGD = {"type": "sgd", "lr": 1.0, "clip_grad": 1.0}  # a step is the clipped gradient itself
ADAM = {"type": "adam", "lr": 1e-3, "eps": 1e-5, "clip_grad": 1.0}
PAIRS = [(name, layout) for name, layouts in LAYOUTS.items() for layout in layouts]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layouts")
    return {name: save_tiny(folder, name) for name in LAYOUTS}


@pytest.fixture(scope="module")
def scored(folders):
    return run_on_two_ranks(score_all, folders, budgets=[BUDGET])


@pytest.fixture(scope="module")
def stepped(folders):
    return run_on_two_ranks(take_all, folders, cases={"sgd": SGD}, steps=1)


def run_on_two_ranks(function, folders, **keys) -> dict:
    results = {}
    for name, layouts in LAYOUTS.items():
        results |= on_ranks(2, function, folders={name: folders[name]}, layouts=layouts, **keys)
    return results


@pytest.mark.parametrize(("name", "layout"), PAIRS)
def test_logprobs_and_entropy_are_those_of_transformers(scored, folders, name, layout):
    laws = plain_laws(folders[name])
    for row, logprobs, entropy, law in zip(rows(), *scored[name, layout][BUDGET], laws, strict=True):
        np.testing.assert_allclose(logprobs, law[np.arange(len(law)), row.response_tokens], rtol=0, atol=1e-5)
        np.testing.assert_allclose(entropy, -(np.exp(law) * law).sum(1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "layout"), PAIRS)
def test_an_sgd_step_is_that_of_plain_torch(stepped, folders, name, layout):
    _, expected = plain_steps(folders[name], 1, **SGD)
    _, weights = stepped[name, layout, "sgd"]
    assert weights.keys() == expected.keys()
    for parameter, value in expected.items():
        np.testing.assert_allclose(weights[parameter], value, rtol=0, atol=1e-5, err_msg=parameter)


def test_a_student_on_other_ranks_gives_its_weights_to_who_needs_them(folders):
    from tests.tiny_models import load_plain

    received = on_ranks(2, export_to_first, folder=folders[DENSE], layout="ranks=1-1")
    for name, param in load_plain(folders[DENSE]).named_parameters():
        np.testing.assert_array_equal(received[name], param.detach().numpy())


def test_the_drift_of_the_routers_is_that_of_their_weights(stepped, folders):
    from tests.tiny_models import load_plain

    (update,), weights = stepped[MIXTURE, "pp=2", "sgd"]
    start = {name: param.detach().numpy() for name, param in load_plain(folders[MIXTURE]).named_parameters()}
    routers = [name for name in start if name.endswith("mlp.gate.weight")]
    moved, whole = (
        sum((x[name] ** 2).sum() for name in routers)
        for x in ({name: weights[name] - start[name] for name in routers}, start)
    )
    assert update.router_drift == pytest.approx((moved / whole) ** 0.5, rel=1e-3)
    assert update.router_drift > 0


@pytest.mark.parametrize("layout", LAYOUTS[MIXTURE])
def test_the_drift_of_the_routers_does_not_depend_on_the_layout(stepped, layout):
    drifts = [stepped[MIXTURE, name, "sgd"][0][0].router_drift for name in (layout, "")]
    assert drifts[0] == pytest.approx(drifts[1], rel=1e-3)


def test_a_dense_student_has_no_routers(stepped):
    assert stepped[DENSE, "cp=2", "sgd"][0][0].router_drift is None


@pytest.fixture(scope="module")
def as_usual(folders, alone):
    return {dtype: take_steps(folders[DENSE], 3, dtype=dtype, **ADAM) for dtype in ("float32", "bfloat16")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "levers",
    [
        {"offload": True},
        {"offload": "ahead"},
        {"recompute": "full"},
        {"recompute": "selective"},
        {"overlap_communication": True},
    ],
    ids=lambda levers: "-".join(map(str, *levers.items())),
)
def test_memory_levers_change_nothing(as_usual, folders, levers, dtype):
    updates, weights = take_steps(folders[DENSE], 3, dtype=dtype, student=levers, **ADAM)
    assert [update.loss for update in updates] == [update.loss for update in as_usual[dtype][0]]
    for name, value in as_usual[dtype][1].items():
        np.testing.assert_array_equal(weights[name], value, err_msg=name)


def test_an_offloaded_optimizer_waits_in_host_memory(folders, alone):
    from megatron_gopd.mcore.optimizer import optimizer_tensors
    from megatron_gopd.objective import gopd_loss
    from megatron_gopd.policies.student import Student
    from tests.policies.steps_on_ranks import batch, settings

    student = Student(settings(folders[DENSE], dtype="bfloat16", student={"offload": True}, **ADAM))
    student.update(batch(), gopd_loss(1.25, 5.0))
    held = list(optimizer_tensors(student._optimizer))
    assert held
    assert all(tensor.untyped_storage().nbytes() == 0 for tensor in held)


OVERLAPPING = {"student": {"overlap_communication": True}}


@pytest.mark.parametrize(("count", "layout"), [(2, ""), (4, "pp=2"), (4, "tp=2,sequence_parallel=true")])
def test_overlapping_communication_changes_no_step(folders, count, layout):
    cases = {"plain": ADAM | {"budget": 64}, "overlapping": ADAM | {"budget": 64} | OVERLAPPING}
    steps = on_ranks(count, take_all, folders={DENSE: folders[DENSE]}, layouts=[layout], cases=cases, steps=3)
    (plain, weights), (overlapping, same) = (steps[DENSE, layout, case] for case in cases)
    assert [update.grad_norm for update in overlapping] == pytest.approx([update.grad_norm for update in plain], 1e-6)
    for name, value in weights.items():
        np.testing.assert_allclose(same[name], value, rtol=0, atol=1e-6, err_msg=name)
