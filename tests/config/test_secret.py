"""Secrets in a configuration: refused with the mend, and not told."""

from __future__ import annotations

import pytest

from megatron_gopd.config.secret import looks_secret
from megatron_gopd.errors import UserError
from tests.config.minimal import MINIMAL

SECRET = "s3cret-v4lue"


@pytest.mark.parametrize(
    "name",
    "api_key api-key apikey API_KEY admin-api-key token hf_token auth-token password ssl-keyfile-password secret "
    "client_secret secret_key access_key credentials wandb.api_key private_key".split(),
)
def test_a_name_that_asks_for_one(name):
    assert looks_secret(name, SECRET)


@pytest.mark.parametrize(
    "name",
    "token_variable max_tokens max_tokens_per_micro_batch max-total-tokens skip-tokenizer-init speculative-token-map "
    "tokenizer-path key keep compass model_path".split(),
)
def test_a_name_that_does_not(name):
    assert not looks_secret(name, "something else")


@pytest.mark.parametrize(
    "value",
    [
        "hf_" + "aB3" * 12,
        "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTYifQ." + "dozjgNryP4J3jVmNHl0w",
        "sk-" + "aB3" * 12,
        "ghp_" + "aB3" * 12,
        "AKIA" + "AB12" * 4,
        "http://user:pass@node7:30000",
        "-----BEGIN PRIVATE KEY-----",
    ],
)
def test_a_value_of_their_form(value):
    assert looks_secret("name", value)


@pytest.mark.parametrize(
    "value", ["/data/hf_checkpoints_of_all_students_and_teachers", "sk-learn", "http://node7:30000/v1", "models/task-7"]
)
def test_a_value_of_another(value):
    assert not looks_secret("model", value)


@pytest.mark.parametrize(
    "override",
    [
        f"logging.wandb.api_key={SECRET}",
        f"rollout.sglang.options.api-key={SECRET}",
        f"rollout.sglang.options={{api-key: {SECRET}}}",
        f"rollout.sglang.urls=['http://me:{SECRET}@node7:30000']",
        f"token={SECRET}",
    ],
)
def test_an_override_is_refused_with_the_mend_and_not_told(load, override):
    with pytest.raises(UserError, match=r"override .*looks like a secret.*environment variable") as caught:
        load(MINIMAL, override)
    assert SECRET not in str(caught.value)


def test_a_file_is_refused_with_the_key_and_not_told(load):
    with pytest.raises(UserError, match=r"run\.yaml: rollout\.sglang\.options\.api-key looks like a secret") as caught:
        load(MINIMAL + f"rollout: {{sglang: {{options: {{api-key: {SECRET}}}}}}}\n")
    assert SECRET not in str(caught.value)


def test_the_name_of_a_variable_is_none(load):
    assert load(MINIMAL, "rollout.sglang.token_variable=MY_TOKEN").rollout.sglang.token_variable == "MY_TOKEN"
