"""The advantage at the lambdas that have a name, and both of its written forms."""

from __future__ import annotations

import pytest
import torch

from megatron_gopd.objective import advantage


@pytest.fixture
def logprobs():
    """student, teacher, reference: [7] float64."""
    generator = torch.Generator().manual_seed(0)
    return [-5 * torch.rand(7, dtype=torch.float64, generator=generator) for _ in range(3)]


def test_lambda_0_pulls_to_the_reference(logprobs):
    student, teacher, reference = logprobs
    torch.testing.assert_close(advantage(student, teacher, reference, 0.0), -(student - reference))


def test_lambda_1_is_the_log_ratio_to_the_teacher(logprobs):
    student, teacher, _ = logprobs
    torch.testing.assert_close(advantage(student, teacher, None, 1.0), teacher - student)


def test_lambda_1_does_not_depend_on_the_reference(logprobs):
    student, teacher, reference = logprobs
    assert torch.equal(advantage(student, teacher, reference, 1.0), advantage(student, teacher, None, 1.0))


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 1.0, 1.25, 3.0])
def test_both_written_forms_agree(logprobs, lambda_):
    student, teacher, reference = logprobs
    first_form = lambda_ * (teacher - reference) - (student - reference)
    torch.testing.assert_close(advantage(student, teacher, reference, lambda_), first_form, rtol=0, atol=1e-14)


def test_it_is_positive_where_the_teacher_likes_the_token_more(logprobs):
    student, _, reference = logprobs
    assert (advantage(student, student + 1, reference, 1.0) > 0).all()


def test_it_is_detached(logprobs):
    student, teacher, reference = (x.requires_grad_() for x in logprobs)
    assert not advantage(student, teacher, reference, 1.25).requires_grad


def test_lambda_beyond_1_needs_a_reference(logprobs):
    student, teacher, _ = logprobs
    with pytest.raises(ValueError, match=r"lambda = 1\.25 needs the reference"):
        advantage(student, teacher, None, 1.25)
