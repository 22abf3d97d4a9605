"""Conversion both ways, bit by bit, and the converted model under every layout."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from megatron_gopd.runs import check_manifest
from tests.mcore.load_on_ranks import load_all, load_with_megatron_alone, save_with_megatron
from tests.ranks import on_ranks
from tests.tiny_models import MIXTURES, NAMES, SCALED, save_tiny, with_single_experts

DENSE = ["qwen3-untied", "qwen3-tied", "qwen2-untied"]  # of each head and kind of projection


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """With experts, and with scaled rope."""
    folder = tmp_path_factory.mktemp("others")
    return {name: save_tiny(folder, name) for name in [*MIXTURES, *SCALED[:2]]}


@pytest.fixture(scope="module")
def converted(models, others, alone, tmp_path_factory):
    """{name: (Hugging Face directory, what became of it)}"""
    from megatron_gopd.mcore.convert import hf_to_megatron

    folder = tmp_path_factory.mktemp("converted")
    pairs = {name: (hf, folder / name) for name, hf in (models | others).items()}
    for hf, target in pairs.values():
        hf_to_megatron(hf, target, verify=True)
    return pairs


def back(source, target, **options):
    from megatron_gopd.mcore.convert import megatron_to_hf

    megatron_to_hf(source, target, verify=True, **options)
    return target


@pytest.mark.parametrize("name", [*NAMES, *SCALED[:2]])
def test_there_and_back_is_the_same_file(converted, tmp_path, name):
    hf, megatron = converted[name]
    again = back(megatron, tmp_path / "again")
    assert {path.name for path in again.iterdir()} == {path.name for path in hf.iterdir()}
    for path in hf.iterdir():
        if path.name != "model.safetensors":
            assert (again / path.name).read_bytes() == path.read_bytes()
    saved, found = load_file(hf / "model.safetensors"), load_file(again / "model.safetensors")
    assert saved.keys() == found.keys()
    assert all(torch.equal(saved[key], found[key]) for key in saved)


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_come_back_one_by_one(converted, tmp_path, name):
    hf, megatron = converted[name]
    found = load_file(back(megatron, tmp_path / "again") / "model.safetensors")
    saved = with_single_experts(load_file(hf / "model.safetensors"))
    assert saved.keys() == found.keys()
    assert all(torch.equal(saved[key], found[key]) for key in saved)


@pytest.fixture(scope="module")
def on_two_ranks(converted):
    layouts = ["tp=2", "pp=2", ""]
    dense = {name: converted[name] for name in DENSE}
    mixed = {name: converted[name] for name in MIXTURES}
    return {
        "ours": on_ranks(2, load_all, pairs=dense, layouts=layouts)
        | on_ranks(2, load_all, pairs=mixed, layouts=["ep=2", "tp=2,ep=2", "pp=2"]),
        "plain": on_ranks(2, load_with_megatron_alone, pairs=dense, layouts=layouts)
        | on_ranks(2, load_with_megatron_alone, pairs=mixed, layouts=["ep=2", "tp=2,etp=2"]),
    }


@pytest.mark.parametrize("how", ["ours", "plain"])
def test_every_layout_loads_it(on_two_ranks, how):
    assert {case: wrong for case, wrong in on_two_ranks[how].items() if wrong} == {}
    assert len(on_two_ranks[how]) >= 13


def test_a_bf16_student_rounds_as_it_does_from_hugging_face(converted, alone):
    assert load_all({"qwen3-tied": converted["qwen3-tied"]}, [""], "bfloat16") == {("qwen3-tied", ""): ""}


@pytest.mark.parametrize(
    ("name", "layout"), [("qwen3-untied", "tp=2"), ("qwen3-tied", "pp=2"), (MIXTURES[0], "tp=2,ep=2")]
)
def test_what_megatron_saved_under_a_layout_comes_back(models, others, alone, tmp_path, name, layout):
    from megatron_gopd.mcore.architecture import Architecture
    from megatron_gopd.mcore.megatron_folder import about
    from megatron_gopd.mcore.save import copy_side_files
    from megatron_gopd.runs import write_manifest

    hf, folder = (models | others)[name], tmp_path / "checkpoint"
    (folder / "state").mkdir(parents=True)
    copy_side_files(hf, folder)
    on_ranks(2, save_with_megatron, hf=hf, folder=folder / "state", layout=layout)
    write_manifest(folder, about(Architecture.read(hf), step=3))
    found = load_file(back(folder, tmp_path / "again") / "model.safetensors")
    saved = with_single_experts(load_file(hf / "model.safetensors"))
    assert saved.keys() == found.keys()
    assert all(torch.equal(saved[key], found[key]) for key in saved)


def test_the_keys_and_chunks_are_those_of_megatron_itself(models, converted, alone, tmp_path):
    from torch.distributed.checkpoint import FileSystemReader

    (tmp_path / "state").mkdir()
    save_with_megatron(models["qwen3-tied"], tmp_path / "state", "")
    own, ours = (
        FileSystemReader(path).read_metadata() for path in (tmp_path / "state", converted["qwen3-tied"][1] / "state")
    )
    assert own.state_dict_metadata == ours.state_dict_metadata
    assert own.storage_data.keys() == ours.storage_data.keys()


def test_the_same_model_gives_the_same_bytes(models, converted, alone, tmp_path):
    from megatron_gopd.mcore.convert import hf_to_megatron

    hf_to_megatron(models["qwen3-tied"], tmp_path / "again")
    one, other = (
        json.loads((path / "manifest.json").read_text()) for path in (tmp_path / "again", converted["qwen3-tied"][1])
    )
    assert one == other


def test_shards_are_as_small_as_asked_for(converted, tmp_path):
    again = back(converted["qwen3-untied"][1], tmp_path / "again", shard_bytes=100_000)
    index = json.loads((again / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in again.glob("*.safetensors"))
    assert len(files) > 5
    assert sorted(set(index["weight_map"].values())) == files
    assert all((again / file).stat().st_size < 110_000 for file in files)


def test_the_manifest_covers_every_file(converted):
    folder = converted["qwen3-tied"][1]
    about = check_manifest(folder)
    assert about["kind"] == "megatron-gopd checkpoint"
    assert about["step"] is None
    files = json.loads((folder / "manifest.json").read_text())["files"]
    on_disk = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files.keys() | {"manifest.json"} == on_disk
