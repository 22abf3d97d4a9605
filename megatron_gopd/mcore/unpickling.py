"""Pickles of checkpoints, read without running what somebody may have put into them.

PyTorch's distributed checkpoints hold two kinds: .metadata, which says where tensors are, and objects beside tensors.
Whoever unpickles a file as it comes runs whatever code it names. Here only the classes that such files are made of are
known; for objects, those of torch.load(weights_only=True), to which Megatron adds its own (megatron/core/safe_globals).
"""

from __future__ import annotations

import contextlib
import io
import pickle
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch.distributed.checkpoint import FileSystemReader, LoadPlan, LoadPlanner, Metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

from megatron_gopd.errors import UserError
from megatron_gopd.runs import DamagedError

_BY_MODULE = {
    "builtins": "set",
    "collections": "OrderedDict",
    "pathlib": "Path PosixPath PurePosixPath",
    "torch": "Size",
    "torch.distributed.checkpoint.filesystem": "_StorageInfo _StoragePrefix",
    "torch.distributed.checkpoint.metadata": "BytesStorageMetadata ChunkStorageMetadata Metadata MetadataIndex "
    "StorageMeta TensorProperties TensorStorageMetadata _MEM_FORMAT_ENCODING",
    "torch.distributed.checkpoint.planner": "BytesIOWriteData SavePlan TensorWriteData WriteItem WriteItemType",
    "torch.serialization": "_get_layout",
}
_OF_METADATA = {(module, name) for module, names in _BY_MODULE.items() for name in names.split()}


class _Unpickler(pickle._Unpickler):
    """The one written in Python, whose steps can be forbidden."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: IO[bytes], known: Collection[tuple[str, str]]):
        """`known`: module and name of what it may hold."""
        super().__init__(file)
        self._known = known

    def find_class(self, module: str, name: str) -> object:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) not in self._known:
            raise pickle.UnpicklingError(_names(f"{module}.{name}"))
        return _known_bytes if name == "_load_from_bytes" else super().find_class(module, name)

    def load_build(self) -> None:
        made = self.stack[-2]
        if not is_dataclass(type(made)) and not isinstance(made, np.ndarray | np.dtype):  # a class of the whole process
            raise pickle.UnpicklingError("it changes what it has not made")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


def _known_bytes(data: bytes) -> object:
    """In the place of PyTorch's, which runs what is in them."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


class Reader(FileSystemReader):
    """As PyTorch's, for files that anybody may have written. Raises DamagedError in the place of running code."""

    def read_metadata(self, *args, **kwargs) -> Metadata:
        path = Path(self._get_metadata_path(kwargs.get("rank")))
        with refusing(path), path.open("rb") as file:
            metadata = _Unpickler(file, _OF_METADATA).load()
            if not isinstance(metadata, Metadata):
                raise pickle.UnpicklingError("it describes no checkpoint")
            names = {str(info.relative_path) for info in metadata.storage_data.values()}
            if outside := next((name for name in names if name != Path(name).name or name == ".."), None):
                raise pickle.UnpicklingError(f"it names a file outside its folder, {outside!r}")
            metadata.storage_meta = getattr(metadata, "storage_meta", None) or StorageMeta()
            metadata.storage_meta.load_id = self.load_id
        return metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> torch.futures.Future[None]:
        return super().read_data(plan, _Objects(planner, self))


class _Objects:
    """A planner that is handed objects as torch.load(weights_only=True) has read them: PyTorch's loads them without."""

    def __init__(self, planner: LoadPlanner, reader: Reader):
        self._planner, self._reader = planner, reader

    def __getattr__(self, name: str) -> object:
        return getattr(self._planner, name)

    def load_bytes(self, item: ReadItem, value: io.BytesIO) -> None:
        path = Path(self._reader.path, self._reader.storage_data[item.storage_index].relative_path)
        with refusing(path):
            known = torch.load(value, map_location="cpu", weights_only=True)
        anew = io.BytesIO()
        torch.save(known, anew)
        anew.seek(0)
        self._planner.load_bytes(item, anew)


@contextlib.contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Within the block `path` is unpickled. Raises DamagedError: it holds what it may not, or cannot be read."""
    try:
        yield
    except DamagedError:
        raise
    except pickle.UnpicklingError as error:
        raise DamagedError(f"{path} is refused: {_told(error)}; no code of it was run") from None
    except Exception as error:  # of bytes that are no pickle, anything
        raise DamagedError(f"{path} cannot be read: {error}") from None


@contextlib.contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Within the block Megatron reads `folder`. Raises DamagedError: what any of its readers raised."""
    try:
        yield
    except CheckpointException as error:  # no Exception
        first = next((each for each, _ in error.failures.values()), error)
        raise first if isinstance(first, UserError) else DamagedError(f"{folder} cannot be read: {first}") from None


def refuse_extra_states(state: Mapping[str, object], where: Path) -> None:
    """State of Transformer Engine's layers lies in tensors of pickled bytes, which it unpickles as they come.

    Raises DamagedError: one of `state` names anything else than what Megatron knows of theirs.
    """
    from megatron.core.safe_globals import SafeUnpickler

    for name, value in state.items():
        if name.rpartition(".")[2].startswith("_extra_state") and isinstance(value, torch.Tensor) and value.numel():
            with refusing(where / name):
                _Unpickler(io.BytesIO(value.detach().cpu().numpy().tobytes()), SafeUnpickler._SAFE_CLASSES).load()


def _told(error: pickle.UnpicklingError) -> str:
    """Of torch's paragraphs, what they are about."""
    found = re.search(r"GLOBAL ([\w.]+)|class '([\w.]+)'", str(error))
    return _names(found[1] or found[2]) if found else " ".join(str(error).split())[-300:]


def _names(what: str) -> str:
    return f"it names {what}, which is no part of a checkpoint"
