"""Merged models against an oracle in float64, and what cannot be merged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_gopd.errors import UserError
from megatron_gopd.mcore.hf_folder import HFFolder
from megatron_gopd.mcore.merge import merge
from tests.tiny_models import save_tiny, with_single_experts

NAMES = ["llama-untied", "qwen2-tied", "qwen3-untied", "qwen3moe-untied"]


def trained_from(base: Path, folder: Path, seed: int, dtype=torch.bfloat16, **save) -> Path:
    """A copy of the model with other weights nearby, as transformers writes it."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * seed * torch.randn_like(parameter))
    model.save_pretrained(folder, **save)
    return folder


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """family(name) -> base and three teachers in bfloat16, in one file and in shards."""
    folder = tmp_path_factory.mktemp("family")
    made = {}

    def family(name: str) -> list[Path]:
        if name not in made:
            source = save_tiny(folder / "float32", name)
            base = trained_from(source, folder / name / "base", 0)
            shards = ("100GB", "100KB", "30KB")
            made[name] = [base] + [
                trained_from(base, folder / name / f"teacher{n}", n, max_shard_size=shards[n - 1]) for n in (1, 2, 3)
            ]
        return made[name]

    return family


@pytest.fixture
def copies(family, tmp_path) -> list[Path]:
    """A base and two teachers to damage."""
    return [shutil.copytree(path, tmp_path / path.name) for path in family("qwen3-untied")[:3]]


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of all its files, experts one by one."""
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    return with_single_experts(tensors) if any(name.endswith("gate_up_proj") for name in tensors) else tensors


def oracle(base: Path, teachers: list[Path], alpha: float) -> dict[str, torch.Tensor]:
    """The formula in float64, rounded to float32 and from there to the base's dtype.

    Written so that all is exact for bf16 values up to one division: where the weights cancel, it is 0 and not 1e-18.
    """
    origin, *others = (stored(folder) for folder in (base, *teachers))
    merged = {}
    for name, tensor in origin.items():
        total = torch.stack([other[name].double() for other in others]).sum(0)
        exact = ((1 + alpha) * total - alpha * len(others) * tensor.double()) / len(others)
        merged[name] = exact.float().to(tensor.dtype)
    return merged


def assert_equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    differing = {name: int((found[name] != expected[name]).sum()) for name in found}
    assert not any(differing.values()), differing
    assert all(found[name].dtype == expected[name].dtype for name in found)


@pytest.mark.parametrize(
    ("teachers", "alpha"), [(1, 0.25), (1, 0.5), *((n, a) for n in (2, 3) for a in (0.0, 0.25, 0.5))]
)
@pytest.mark.parametrize("name", NAMES)
def test_every_value_is_the_oracles_bit_for_bit(family, tmp_path, name, teachers, alpha):
    base, *others = family(name)
    merge(others[:teachers], tmp_path / "merged", base=base, alphas=[alpha])
    assert_equal(stored(tmp_path / "merged"), oracle(base, others[:teachers], alpha))


def test_float32_models_are_within_a_rounding_of_the_oracle(models, tmp_path):
    base = models["qwen3-untied"]
    others = [trained_from(base, tmp_path / f"{n}", n, torch.float32) for n in (1, 2, 3)]
    merge(others, tmp_path / "merged", base=base, alphas=[0.25])
    found, expected = stored(tmp_path / "merged"), oracle(base, others, 0.25)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=2**-21, atol=2**-24)


def test_the_mean_needs_no_base(family, tmp_path):
    base, *others = family("qwen3-untied")
    merge(others, tmp_path / "without")
    merge(others, tmp_path / "with", base=base)
    assert_equal(stored(tmp_path / "without"), stored(tmp_path / "with"))


def test_several_alphas_get_a_folder_each(family, tmp_path):
    base, *others = family("qwen3-untied")
    written = merge(others, tmp_path / "all", base=base, alphas=[0.25, 0.5])
    assert written == [tmp_path / "all" / "alpha-0.25", tmp_path / "all" / "alpha-0.5"]
    assert sorted((tmp_path / "all").iterdir()) == written
    for alpha, folder in zip([0.25, 0.5], written, strict=True):
        assert_equal(stored(folder), oracle(base, others, alpha))


@pytest.mark.parametrize("name", NAMES)
def test_transformers_loads_the_result(family, tmp_path, name):
    from transformers import AutoModelForCausalLM

    base, *others = family(name)
    merge(others, tmp_path / "merged", base=base, alphas=[0.5])
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert model.dtype == torch.bfloat16
    assert torch.isfinite(model(torch.arange(10)[None]).logits).all()


def test_the_result_is_written_in_shards_with_an_index(family, tmp_path, monkeypatch):
    monkeypatch.setattr("megatron_gopd.mcore.merge.SHARD_BYTES", 50_000)
    base, *others = family("qwen3-untied")
    merge(others, tmp_path / "merged", base=base, alphas=[0.25])
    assert len(list((tmp_path / "merged").glob("model-*-of-*.safetensors"))) > 2
    assert HFFolder(tmp_path / "merged").names() == HFFolder(base).names()
    assert_equal(stored(tmp_path / "merged"), oracle(base, others, 0.25))


def test_tokenizer_and_generation_settings_are_the_bases(copies, tmp_path):
    base, *others = copies
    (base / "chat_template.jinja").write_text("base")
    (others[0] / "chat_template.jinja").write_text("teacher")
    merge(others, tmp_path / "merged", base=base, alphas=[0.25])
    for name in ("chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "merged" / name).read_text() == (base / name).read_text()


@pytest.mark.parametrize("which", [0, 1])
def test_experts_are_the_same_fused_or_one_by_one(family, tmp_path, which):
    folders = [shutil.copytree(path, tmp_path / path.name) for path in family("qwen3moe-untied")[:3]]
    single = stored(folders[which])
    fused = {name: tensor for name, tensor in single.items() if ".mlp.experts." not in name}
    for layer in range(4):
        prefix = f"model.layers.{layer}.mlp.experts"
        gate, up, down = (
            torch.stack([single[f"{prefix}.{n}.{part}_proj.weight"] for n in range(8)])
            for part in ("gate", "up", "down")
        )
        fused |= {f"{prefix}.gate_up_proj": torch.cat([gate, up], 1), f"{prefix}.down_proj": down}
    for path in folders[which].glob("*.safetensors*"):
        path.unlink()
    save_file(fused, folders[which] / "model.safetensors")
    merge(folders[1:], tmp_path / "merged", base=folders[0], alphas=[0.25])
    base, *others = family("qwen3moe-untied")
    assert_equal(stored(tmp_path / "merged"), oracle(base, others[:2], 0.25))


def test_a_tied_head_may_be_stored_or_not(family, tmp_path):
    base, *others = family("qwen2-tied")
    copy = shutil.copytree(others[0], tmp_path / "stored")
    rewrite(copy, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    merge([copy, others[1]], tmp_path / "merged", base=base, alphas=[0.25])
    assert_equal(stored(tmp_path / "merged"), oracle(base, others[:2], 0.25))


# ---------------------------------------------------------------- what is refused, with nothing written
@pytest.fixture
def refusal(copies, tmp_path):
    """refusal(): what the user is told of BASE, ONE and TWO."""

    def refusal(teachers=None, **options) -> str:
        base, *others = copies
        before = sorted(tmp_path.iterdir())
        with pytest.raises(UserError) as caught:
            merge(teachers or others, tmp_path / "merged", **{"base": base, "alphas": [0.25]} | options)
        assert sorted(tmp_path.iterdir()) == before
        text = str(caught.value)
        for folder, name in zip(copies, ("BASE", "ONE", "TWO"), strict=True):
            text = text.replace(str(folder), name)
        return text

    return refusal


def rewrite(folder: Path, change) -> None:
    """Let `change` edit the tensors of the folder in place; the folder then holds one file."""
    tensors = stored(folder)
    change(tensors)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def set_config(folder: Path, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"hidden_size": 128}, "hidden_size: 64 / 128"),
        ({"vocab_size": 132}, "vocab_size: 131 / 132"),
        ({"tie_word_embeddings": True}, "tied: False / True"),
        ({"num_hidden_layers": 3, "rms_norm_eps": 1e-5}, "layers: 4 / 3; norm_eps: 1e-06 / 1e-05"),
    ],
)
def test_another_architecture_is_told_field_by_field(copies, refusal, fields, told):
    set_config(copies[2], **fields)
    assert refusal() == f"BASE and TWO are not of one architecture: {told}. Merge models trained from one base"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), "model.norm.weight is missing"),
        (lambda tensors: tensors.update({"extra": torch.zeros(2)}), "extra holds 2 values config.json does not"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.zeros(65)}), "model.norm.weight is [65]"),
    ],
)
@pytest.mark.parametrize("which", [0, 2])
def test_weights_of_another_model_are_refused(copies, refusal, which, change, told):
    rewrite(copies[which], change)
    message = refusal()
    assert message.startswith(f"{('BASE', 'ONE', 'TWO')[which]}: weights and config.json belong to different models")
    assert told in message


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("which", [0, 2])
def test_a_value_that_is_not_finite_is_named(copies, refusal, which, value):
    rewrite(copies[which], lambda tensors: tensors["model.norm.weight"][5].fill_(value))
    told = f"{('BASE', 'ONE', 'TWO')[which]}/model.safetensors: model.norm.weight holds 1 NaN or infinite value(s)"
    assert refusal().startswith(told)
    assert refusal(alphas=[0.25, 0.5]).startswith(told)


def test_a_result_out_of_range_is_named(copies, refusal):
    for folder, value in zip(copies, (-3e38, 3e38, 3e38), strict=True):
        rewrite(folder, lambda tensors, value=value: tensors["model.norm.weight"][5].fill_(value))
    assert refusal().startswith("model.norm.weight: alpha 0.25 takes values out of the range of torch.bfloat16")


@pytest.mark.parametrize("which", [0, 2])
def test_integers_in_the_place_of_weights_are_refused(copies, refusal, which):
    rewrite(copies[which], lambda tensors: tensors.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)}))
    assert "/model.safetensors: model.norm.weight is stored as I8; supported: F32, BF16, F16" in refusal()


def test_another_vocabulary_is_refused(chat_models, tmp_path):
    from tests.chat_models import tokenizer

    other = shutil.copytree(chat_models["past"], tmp_path / "other")
    changed = tokenizer()
    changed.add_tokens(["<new>"])
    changed.save_pretrained(other)
    with pytest.raises(UserError, match="have different tokenizers: 1 ids differ .*<new>"):
        merge([chat_models["past"], other], tmp_path / "merged")


def test_options_that_say_nothing_are_refused(copies, refusal):
    base, one, two = copies
    assert refusal(base=None).startswith("an alpha other than 0 extrapolates from a base")
    assert refusal(alphas=[0.25, 0.25]) == "--alpha 0.25, 0.25: name finite numbers, each once"
    assert refusal(alphas=[float("nan")]).startswith("--alpha nan")
    assert refusal([one, f"{one}/"]).startswith("a model is named twice")
    assert refusal([one], alphas=[0.0]).startswith("the mean of ONE alone is that model")


def test_an_existing_output_is_refused(copies, tmp_path):
    (tmp_path / "merged").mkdir()
    with pytest.raises(UserError, match="merged exists; name a new folder, or remove it"):
        merge(copies[1:], tmp_path / "merged")
    assert not list((tmp_path / "merged").iterdir())
