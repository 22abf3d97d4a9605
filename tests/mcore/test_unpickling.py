"""Checkpoints that somebody else wrote: what they hold is read, and never run."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_gopd.errors import UserError


class Payload:
    """Unpickling it makes the file `path`."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def converted(models, alone, tmp_path_factory):
    from megatron_gopd.mcore.convert import hf_to_megatron

    folder = tmp_path_factory.mktemp("converted") / "model"
    hf_to_megatron(models["qwen3-tied"], folder)
    return folder


@pytest.fixture
def state(converted, tmp_path) -> Path:
    """Of a converted model, to put something into."""
    return shutil.copytree(converted, tmp_path / "model") / "state"


@pytest.fixture
def ran(tmp_path) -> Path:
    return tmp_path / "the-payload-ran"


def metadata_of(state: Path):
    return pickle.loads((state / ".metadata").read_bytes())


def write_metadata(state: Path, metadata: object) -> None:
    from megatron_gopd.runs import read_manifest, write_manifest

    (state / ".metadata").write_bytes(pickle.dumps(metadata))
    write_manifest(state.parent, read_manifest(state.parent))  # whoever changes a folder can change its manifest


def write_object(state: Path, key: str, value: object) -> None:
    """In the place of the object called `key`; its record goes to a file of its own."""
    with (state / "__9_9.distcp").open("wb") as file:
        torch.save(value, file)
    metadata = metadata_of(state)
    index = next(index for index in metadata.storage_data if index.fqn == key)
    info = metadata.storage_data[index]
    info.relative_path, info.offset, info.length = "__9_9.distcp", 0, (state / "__9_9.distcp").stat().st_size
    write_metadata(state, metadata)


def loaded(state: Path, wanted: dict | None = None) -> dict:
    """As a resume does it."""
    from megatron_gopd.mcore.checkpoint import read

    return read(wanted or {}, state, whole=not wanted)


def converted_back(state: Path) -> None:
    from megatron_gopd.mcore.convert import megatron_to_hf

    megatron_to_hf(state.parent, state.parent.with_name("target"))


@pytest.mark.parametrize("reads", [loaded, converted_back])
def test_code_in_metadata_is_refused_by_name(state, ran, reads):
    metadata = metadata_of(state)
    metadata.planner_data = Payload(ran)
    write_metadata(state, metadata)
    with pytest.raises(UserError, match=rf"{state}/\.metadata is refused: it names posix\.mkdir"):
        reads(state)
    assert not ran.exists()


@pytest.mark.parametrize("reads", [loaded, converted_back])
def test_code_in_the_place_of_metadata_is_refused_by_name(state, ran, reads):
    write_metadata(state, Payload(ran))
    with pytest.raises(UserError, match=rf"{state}/\.metadata is refused: it names posix\.mkdir"):
        reads(state)
    assert not ran.exists()


@pytest.mark.parametrize("value", ["eval", "getattr", "torch.load", "torch.hub.load"])
def test_metadata_may_not_even_name_a_function(state, value):
    module, _, name = f"builtins.{value}".removeprefix("builtins.torch").rpartition(".")
    named = f"torch{module}" if value.startswith("torch") else module
    (state / ".metadata").write_bytes(b"\x80\x04" + b"".join(map(short_text, (named, name))) + b"\x93.")
    with pytest.raises(UserError, match=rf"\.metadata is refused: it names {named}\.{name}"):
        loaded(state)


def short_text(text: str) -> bytes:
    return pickle.SHORT_BINUNICODE + bytes([len(text)]) + text.encode()


def test_a_path_through_a_known_class_is_refused(state):
    """Pickle follows dots."""
    known = short_text("torch.distributed.checkpoint.metadata") + short_text("Metadata.__init__.__globals__")
    (state / ".metadata").write_bytes(b"\x80\x04" + known + b"\x93.")
    with pytest.raises(UserError, match=r"it names torch\.distributed\.checkpoint\.metadata\.Metadata\.__init__"):
        loaded(state)


@pytest.mark.parametrize("name", ["pathlib\nPath", "torch.serialization\n_get_layout"])
def test_what_is_known_is_not_changed(state, name):
    """Pickle sets attributes, and not of what it has made alone."""
    change = b"\x80\x04c" + name.encode() + b"\n(N}" + short_text("exists") + b"c" + b"builtins\nset\nstb."
    (state / ".metadata").write_bytes(change)
    with pytest.raises(UserError, match=r"\.metadata is refused: it changes what it has not made"):
        loaded(state)
    assert Path.exists(state)


def test_code_in_the_common_part_is_refused_by_name(state, ran):
    write_object(state, "common_state/shard_0_1", [Payload(ran)])
    with pytest.raises(UserError, match=rf"{state}/__9_9\.distcp is refused: it names posix\.mkdir"):
        loaded(state)
    assert not ran.exists()


def test_code_in_an_object_beside_tensors_is_refused_by_name(state, ran):
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    key = next(index.fqn for index in metadata_of(state).storage_data if "extra_state" in index.fqn)
    write_object(state, key, [Payload(ran)])
    wanted = ShardedObject.empty_from_unique_key(key)
    wanted.data = None
    with pytest.raises(UserError, match=rf"{state}/__9_9\.distcp is refused: it names posix\.mkdir"):
        loaded(state, {"it": wanted})
    assert not ran.exists()


@pytest.mark.parametrize("force", ["", "1"], ids=["", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
def test_code_in_the_place_of_a_tensor_is_refused_by_name(state, ran, force, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", force)
    write_object(state, "embedding.word_embeddings.weight", Payload(ran))
    with pytest.raises(UserError, match=rf"{state}/__9_9\.distcp is refused: it names posix\.mkdir"):
        converted_back(state)
    assert not ran.exists()


def test_code_in_what_older_megatrons_left_is_not_read(state, ran):
    torch.save({"args": Payload(ran)}, state / "common.pt")
    with pytest.raises(UserError, match=rf"{state}/common\.pt is not of megatron-gopd, and was not read"):
        loaded(state)
    assert not ran.exists()


def test_code_in_state_of_transformer_engine_is_refused_by_name(ran):
    from megatron_gopd.mcore.unpickling import refuse_extra_states

    pickled = torch.from_numpy(np.frombuffer(pickle.dumps({"scale": Payload(ran)}), np.uint8).copy())
    with pytest.raises(UserError, match=r"layers\.0\.mlp\._extra_state is refused: .*posix\.mkdir"):
        refuse_extra_states({"layers.0.mlp._extra_state": pickled}, Path("step-00000002"))
    assert not ran.exists()


def test_code_in_a_tensor_of_such_a_state_is_refused_by_name(ran):
    from megatron_gopd.mcore.unpickling import refuse_extra_states

    class Storage:
        def __reduce__(self):
            torch.save(Payload(ran), buffer := io.BytesIO())
            return torch.storage._load_from_bytes, (buffer.getvalue(),)

    for inner, refused in ((Storage(), "posix.mkdir"), (torch.arange(3.0), None)):
        pickled = torch.from_numpy(np.frombuffer(pickle.dumps({"scale": inner}), np.uint8).copy())
        with pytest.raises(UserError, match=rf"is refused: .*{refused}") if refused else contextlib.nullcontext():
            refuse_extra_states({"_extra_state": pickled}, Path("step-00000002"))
    assert not ran.exists()


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", ".."])
def test_files_outside_the_folder_are_not_read(state, name):
    metadata = metadata_of(state)
    next(iter(metadata.storage_data.values())).relative_path = name
    write_metadata(state, metadata)
    with pytest.raises(UserError, match=rf"\.metadata is refused: it names a file outside its folder, '{name}'"):
        loaded(state)


@pytest.mark.parametrize("change", ["state_dict_metadata", "storage_data"])
@pytest.mark.parametrize("to", [None, {"embedding.word_embeddings.weight": 3}, [1]])
def test_metadata_of_other_shapes_is_a_message(state, change, to):
    metadata = metadata_of(state)
    setattr(metadata, change, to)
    write_metadata(state, metadata)
    with pytest.raises(UserError, match=str(state)):
        converted_back(state)


def test_what_torch_saves_of_generators_is_read(state, alone):
    """The random state of a run: numbers, arrays, tensors."""
    from megatron_gopd.mcore.checkpoint import random_state

    buffer = io.BytesIO()
    torch.save([random_state()["random"].data], buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True)[0]["python"]
