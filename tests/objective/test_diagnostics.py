"""What whole distributions tell of lambda."""

from __future__ import annotations

import pytest
import torch

from megatron_gopd.objective.diagnostics import disagreement, lambda_limit


def laws(p: float, b: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Of two tokens: the teacher's likelier one has p, and b under the reference."""
    return torch.tensor([[p, 1 - p]]).double().log(), torch.tensor([[b, 1 - b]]).double().log()


@pytest.mark.parametrize(("p", "b", "cap"), [(0.9, 0.6, 5.0), (0.7, 0.3, 2.0), (0.99, 0.98, 5.0)])
def test_at_the_limit_the_fixed_point_s_rest_is_a_cap_th_of_the_teacher_s(p, b, cap):
    teacher, reference = laws(p, b)
    limit = lambda_limit(teacher, reference, cap).item()
    modal = (limit * teacher + (1 - limit) * reference).softmax(-1)[0, 0].item()
    assert limit > 1
    assert (1 - p) / (1 - modal) == pytest.approx(cap, rel=1e-4)


@pytest.mark.parametrize(("p_against", "b_against"), [(20.0, 3.0), (20.0, 18.0), (18.0, 20.0)])
def test_models_so_sure_that_their_probability_rounds_to_1_have_the_limit_of_float64(p_against, b_against):
    logits = torch.tensor([[p_against, 0.0]]), torch.tensor([[b_against, 0.0]])
    exact = lambda_limit(*(each.double().log_softmax(-1) for each in logits), 5.0)
    torch.testing.assert_close(lambda_limit(*(each.log_softmax(-1) for each in logits), 5.0), exact)


def test_a_teacher_less_sure_than_its_reference_has_no_limit():
    assert lambda_limit(*laws(0.6, 0.8), 5.0).item() == torch.inf


def test_disagreement_is_the_mass_that_must_move():
    teacher, reference = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[0.1, 0.4, 0.5]]).log()
    assert disagreement(teacher, reference).item() == pytest.approx(0.4)
