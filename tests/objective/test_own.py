"""A loss of the user's own: checked in every call, and blamed by its line."""

from __future__ import annotations

import pytest
import torch

from megatron_gopd.config import Objective
from megatron_gopd.config.own_code import OwnCode
from megatron_gopd.errors import UserError
from megatron_gopd.objective import TokenLoss, TokenRows, by_autograd
from megatron_gopd.objective.own import own_loss, try_out

HEAD = """\
import torch
from megatron_gopd.objective import TokenLoss, by_autograd
def build():
    def mine(logprobs, entropy, rows):
        weights = rows.weights.to(logprobs.dtype)
        slope = weights * (logprobs - rows.teacher_logprobs)
"""
TAIL = "\n    return mine\n"
BY_AUTOGRAD = """\
from megatron_gopd.objective import by_autograd
def build():
    @by_autograd
    def mine(logprobs, entropy, rows):
"""


@pytest.fixture
def keys():
    return Objective(type="mine.py:build")


@pytest.fixture
def code(tmp_path):
    """code(body, head): what a file with this body of `mine` names."""

    def code(body: str, head: str = HEAD) -> OwnCode:
        file = tmp_path / "mine.py"
        file.write_text(head + "        " + body + TAIL)
        return OwnCode(str(file), "build")

    return code


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return TokenLoss(slope.sum(), slope, None, {'gap': slope})", None),
        ("return TokenLoss(slope.sum(), None, slope, {})", None),
        ("return None", "4: mine returned NoneType, where megatron_gopd.objective.TokenLoss is expected"),
        ("return TokenLoss(slope.sum(), None, None, {})", "4: mine returned no gradient"),
        ("return TokenLoss(slope, slope, None, {})", "4: mine returned loss of shape [64], where [] is expected"),
        ("return TokenLoss(1.0, slope, None, {})", "4: mine returned loss of shape float, where [] is expected"),
        (
            "return TokenLoss(slope.sum(), slope[1:], None, {})",
            "4: mine returned dloss_dlogprobs of shape [63], where [64] is expected, of 64 tokens",
        ),
        (
            "return TokenLoss(slope.sum(), slope, slope[:, None], {})",
            "4: mine returned dloss_dentropy of shape [64, 1]",
        ),
        (
            "return TokenLoss(slope.sum(), slope, None, {'gap': slope.mean()})",
            "4: mine returned metrics['gap'] of shape",
        ),
        (
            "return TokenLoss(slope.sum(), slope, None, {'loss': slope})",
            "4: mine returned a metric 'loss', which",
        ),
        ("return TokenLoss(slope.sum(), slope.log(), None, {})", "4: mine returned dloss_dlogprobs with nan in it"),
        ("return TokenLoss(slope.sum() / 0, slope, None, {})", "4: mine returned loss with"),
        ("return TokenLoss(slope.sum(), slope, None, [])", "4: mine returned metrics of type list"),
        (
            "return slope @ rows.nothing",
            "7: AttributeError: 'TokenRows' object has no attribute 'nothing' (in: return",
        ),
        (
            "return TokenLoss(slope.mean(), slope, None, {})",
            "3: the loss of build is not a sum over tokens: of 64",
        ),
        (
            "return TokenLoss(slope.sum(), slope / len(slope), None, {})",
            "3: the loss of build is not a sum over tokens",
        ),
        (
            "return TokenLoss(slope.sum(), slope * 0, None, {})",
            "3: the gradient of build is 0: nothing would be",
        ),
    ],
)
def test_what_a_loss_returns_is_looked_at_before_a_run(code, keys, body, expected):
    mine = code(body)
    if expected is None:
        try_out(mine, keys, {"teacher_logprobs"})
        return
    with pytest.raises(UserError) as caught:
        try_out(mine, keys, {"teacher_logprobs"})
    assert str(caught.value).removeprefix(f"{mine.file}:").startswith(expected)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return (rows.weights * logprobs.detach()).sum(), {}", "3: mine returned no gradient"),
        ("return (rows.weights * logprobs).sum()", "TypeError: mine must return (scalar tensor, {name: [tokens]})"),
        ("return (rows.weights * logprobs.log()).sum(), {}", "3: mine returned loss with nan in it"),
    ],
)
def test_a_loss_by_autograd_is_blamed_by_its_line(code, keys, body, expected):
    mine = code(body, BY_AUTOGRAD)
    with pytest.raises(UserError) as caught:
        try_out(mine, keys, {"teacher_logprobs"})
    assert expected in str(caught.value)


def test_autograd_finds_the_gradient_that_one_would_write():
    logprobs, entropy, weights = torch.randn(5), torch.rand(5), torch.rand(5)
    found = by_autograd(lambda logprobs, entropy, rows: ((rows.weights * (logprobs.square() - entropy)).sum(), {}))(
        logprobs, entropy, TokenRows(weights)
    )
    torch.testing.assert_close(found.dloss_dlogprobs, 2 * weights * logprobs)
    torch.testing.assert_close(found.dloss_dentropy, -weights)
    assert not found.loss.requires_grad


def test_a_loss_that_fails_in_a_step_is_told_then(code, keys):
    """On what is made up it is fine: here a teacher is surer than the student."""
    loss = own_loss(code("return TokenLoss((slope / (slope < 0)).sum(), slope, None, {})"), keys)
    rows = TokenRows(torch.ones(2) / 2, teacher_logprobs=torch.tensor([-1.0, -3.0]))
    with pytest.raises(UserError, match=r"mine\.py:4: mine returned loss with inf in it"):
        loss(torch.tensor([-2.0, -2.0]), torch.ones(2), rows)


def test_of_no_tokens_a_loss_tells_its_metrics_names(code, keys):
    """The file is not asked: what it takes the maximum of, say, would be empty."""
    loss = own_loss(code("return TokenLoss(slope.sum(), slope, None, {'gap': slope / slope.abs().max()})"), keys)
    rows = TokenRows(torch.ones(0), teacher_logprobs=torch.ones(0))
    found = loss(torch.empty(0), torch.empty(0), rows)
    assert isinstance(found, TokenLoss)
    assert {name: len(column) for name, column in found.metrics.items()} == {"gap": 0}
