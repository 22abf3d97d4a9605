"""Megatron's torch_dist files without Megatron's memory: tensor by tensor, each made when it is written or read.

Megatron's own strategy wants the whole model in memory. The format is PyTorch's distributed checkpoint: each chunk of a
global tensor is a torch.save record in a .distcp file, and .metadata says where. PyTorch's planner checks that the
chunks cover every tensor; its writer makes .metadata.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter, SavePlan
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.utils.serialization import config as serialization

from megatron_gopd.mcore.skeleton import Parameter, Skeleton
from megatron_gopd.mcore.unpickling import Reader, refusing
from megatron_gopd.runs import DamagedError, sync_behind

FILE_BYTES = 2**30  # a new file after so many: several are hashed at once


def write_state(
    folder: Path, skeleton: Skeleton, dtypes: list[torch.dtype], chunks: Callable[[Parameter], list[Tensor]]
) -> None:
    """Write a model as Megatron's dist_checkpointing would from one rank.

    Args:
        folder: existing and empty.
        dtypes: of every parameter; one for all layers of a parameter.
        chunks: the data of a parameter's chunks; called once a parameter, in order, and let go before the next call.
    """
    objects = [*skeleton.objects, ShardedObject("common_state", {}, (1,), (0,))]
    of_objects = [WriteItem(MetadataIndex(item.unique_key), WriteItemType.BYTE_IO) for item in objects]
    of_parameters = [
        [_write_item(chunk, dtype) for chunk in parameter.chunks()]
        for parameter, dtype in zip(skeleton.parameters, dtypes, strict=True)
    ]
    plan = SavePlan([*of_objects, *(item for items in of_parameters for item in items)])
    _, metadata = DefaultSavePlanner(flatten_state_dict=False).create_global_plan([plan])
    with sync_behind() as finished:
        records = _Records(folder, finished)
        for item, sharded in zip(of_objects, objects, strict=True):
            records.add(item, [sharded.data])
        for items, parameter in zip(of_parameters, skeleton.parameters, strict=True):
            for item, chunk in zip(items, chunks(parameter), strict=True):
                records.add(item, chunk.view(item.tensor_data.chunk.sizes))
        records.close()
    _MetadataWriter(folder, sync_files=False).finish(metadata, [records.results])
    strategy = TorchDistSaveShardedStrategy()
    save_config(CheckpointingConfig(strategy.backend, strategy.version), str(folder))


class _MetadataWriter(FileSystemWriter):
    def storage_meta(self) -> None:
        """Nothing of where and when: the same model gives the same bytes."""


def _write_item(chunk: ShardedTensor, dtype: torch.dtype) -> WriteItem:
    offsets = torch.Size(chunk.global_offset)
    sizes = torch.Size([1] * chunk.prepend_axis_num + list(chunk.local_shape))
    return WriteItem(
        MetadataIndex(chunk.key, offsets),
        WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            ChunkStorageMetadata(offsets, sizes), TensorProperties(dtype=dtype), torch.Size(chunk.global_shape)
        ),
    )


class _Records:
    """Appends torch.save records to numbered .distcp files."""

    def __init__(self, folder: Path, finished: Callable[[Path], object]):
        self.results: list[WriteResult] = []
        self._folder, self._finished, self._files = folder, finished, 0
        self._stream: BinaryIO | None = None

    def add(self, item: WriteItem, value) -> None:
        if self._stream is None or self._stream.tell() >= FILE_BYTES:
            self.close()
            self._stream = (self._folder / f"__0_{self._files}.distcp").open("xb")
            self._files += 1
        offset = self._stream.tell()
        if isinstance(value, Tensor) and value.untyped_storage().nbytes() != value.nbytes:
            value = value.clone()  # torch.save writes the storage whole
        with serialization.patch("save.compute_crc32", False):  # slower than the disk, and the manifest knows better
            torch.save(value, self._stream)
        length = self._stream.tell() - offset
        name = Path(self._stream.name).name
        self.results.append(WriteResult(item.index, length, _StorageInfo(name, offset, length)))

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._finished(Path(self._stream.name))


class StateReader:
    """Parts of global tensors, from the files any layout has written."""

    def __init__(self, folder: Path):
        """Raises DamagedError: no readable .metadata."""
        self._folder, self._reader = folder, Reader(folder)
        metadata = self._reader.read_metadata()
        self._tensors, self._storage = metadata.state_dict_metadata, metadata.storage_data
        self._at: dict[str, dict[tuple, list[ChunkStorageMetadata]]] = {}

    def dtype(self, key: str) -> torch.dtype:
        with refusing(self._folder / ".metadata"):
            return self._about(key).properties.dtype

    def read(self, chunk: ShardedTensor) -> Tensor:
        """The data of `chunk`, of its local shape.

        Raises:
            DamagedError: the checkpoint lacks it, or a part of it.
        """
        with refusing(self._folder / ".metadata"):  # whose parts may be anything
            return self._read(chunk)

    def _read(self, chunk: ShardedTensor) -> Tensor:
        offsets = chunk.global_offset
        sizes = (1,) * chunk.prepend_axis_num + chunk.local_shape
        whole, filled = None, 0
        for stored in self._stored_at(chunk.key, offsets[: chunk.prepend_axis_num]):
            if stored.offsets == offsets and stored.sizes == sizes:
                return self._load(chunk.key, stored).view(chunk.local_shape)
            here, there = _overlap(offsets, sizes, stored)
            if here is not None:
                part = self._load(chunk.key, stored)[there]
                whole = part.new_empty(sizes) if whole is None else whole
                whole[here] = part
                filled += part.numel()
        if whole is None or filled != whole.numel():
            raise DamagedError(f"{self._folder}: {chunk.key} lacks values at {list(offsets)}, {list(sizes)} wide")
        return whole.view(chunk.local_shape)

    def _about(self, key: str):
        if key not in self._tensors:
            raise DamagedError(f"{self._folder}: {key} is missing; the checkpoint does not belong to its config.json")
        return self._tensors[key]

    def _stored_at(self, key: str, prefix: tuple[int, ...]) -> list[ChunkStorageMetadata]:
        """The chunks of one layer (and expert): looked up, as there are many thousands."""
        if key not in self._at:
            self._at[key] = {}
            for stored in self._about(key).chunks:
                self._at[key].setdefault(tuple(stored.offsets[: len(prefix)]), []).append(stored)
        return self._at[key].get(tuple(prefix), [])

    def _load(self, key: str, stored: ChunkStorageMetadata) -> Tensor:
        info = self._storage[MetadataIndex(key, stored.offsets)]
        path = self._folder / info.relative_path
        with refusing(path), path.open("rb") as stream:
            record = self._reader._slice_file(stream, info)
            with FakeTensorMode():  # tells where a tensor's bytes are, and reads none of them
                told = torch.load(record, weights_only=True)
            start, length = told.untyped_storage()._checkpoint_offset, told.untyped_storage().nbytes()
            if start is None or not told.is_contiguous() or length != told.numel() * told.itemsize:
                record.seek(0)
                return torch.load(record, map_location="cpu", weights_only=True)
            mapped = np.memmap(path, np.uint8, "c", info.offset + start, length)  # where torch.load would copy
            return torch.from_numpy(mapped).view(told.dtype).view(told.shape)


def _overlap(offsets, sizes, stored: ChunkStorageMetadata) -> tuple[tuple, tuple] | tuple[None, None]:
    """Slices of what two boxes share, counted in either; None where they share nothing."""
    here, there = [], []
    for first, size, other, width in zip(offsets, sizes, stored.offsets, stored.sizes, strict=True):
        start, end = max(first, other), min(first + size, other + width)
        if start >= end:
            return None, None
        here.append(slice(start - first, end - first))
        there.append(slice(start - other, end - other))
    return tuple(here), tuple(there)
