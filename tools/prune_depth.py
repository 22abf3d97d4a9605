"""Leave decoder layers out of a Hugging Face directory: a shallower model with the same vocabulary, to be distilled.

    python tools/prune_depth.py models/SmolLM2-135M-Instruct models/SmolLM2-27-layers --drop 12,16,20

Weights stay memory-mapped from the one safetensors file to the other: a model larger than the memory is no trouble.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from megatron_gopd.errors import UserError

LAYER = re.compile(r"(model\.layers\.)(\d+)(\..+)")
CARRIED = ("*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken", "LICENSE*", "NOTICE*")  # tokenizer, generation, terms
INDEX = "model.safetensors.index.json"


def prune_depth(model: Path, output: Path, drop: list[int]) -> int:
    """Write `model` without the layers `drop` (0-based) to the new folder `output`; returns how many layers are left.

    Raises UserError: no such model, a layer out of range or named twice, nothing left, `output` exists.
    """
    if output.exists():
        raise UserError(f"{output} exists; name a new folder, or remove it")
    config = _config(model)
    renumber = _renumber(config["num_hidden_layers"], drop, model)
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as scratch:
        folder = Path(scratch, "model")
        folder.mkdir()
        for path in {path for pattern in CARRIED for path in model.glob(pattern)}:
            shutil.copyfile(path, folder / path.name)
        _write_json(folder / "config.json", _shallower(config, renumber))
        _copy_weights(model, folder, config["num_hidden_layers"], renumber)
        folder.rename(output)
    return len(renumber)


def _config(model: Path) -> dict:
    path = model / "config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}); MODEL is a Hugging Face directory") from None
    if not isinstance(config.get("num_hidden_layers"), int):
        raise UserError(f"{path}: no num_hidden_layers; only a model with one stack of decoder layers can be pruned")
    if config.get("decoder_sparse_step", 1) != 1:
        raise UserError(f"{path}: decoder_sparse_step makes every n-th layer sparse; pruning would change which")
    return config


def _renumber(depth: int, drop: list[int], model: Path) -> dict[int, int]:
    """Old number -> new number of every layer that stays."""
    for layer in drop:
        if not 0 <= layer < depth:
            raise UserError(f"--drop {layer}: {model} has the layers 0 to {depth - 1}")
        if drop.count(layer) > 1:
            raise UserError(f"--drop names layer {layer} twice; name each layer once")
    kept = [layer for layer in range(depth) if layer not in drop]
    if not kept:
        raise UserError(f"--drop names all {depth} layers of {model}; leave at least one")
    return {old: new for new, old in enumerate(kept)}


def _shallower(config: dict, renumber: dict[int, int]) -> dict:
    config = config | {"num_hidden_layers": len(renumber)}
    if config.get("layer_types"):
        config["layer_types"] = [config["layer_types"][old] for old in renumber]
    if config.get("mlp_only_layers"):
        config["mlp_only_layers"] = [renumber[old] for old in config["mlp_only_layers"] if old in renumber]
    return config


def _copy_weights(model: Path, folder: Path, depth: int, renumber: dict[int, int]) -> None:
    """Shard by shard; a shard that loses all its tensors is left out, and an index is written anew."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    names: set[str] = set()
    index: dict = {"metadata": {"total_size": 0}, "weight_map": {}}
    for file in _shards(model):
        try:
            with safe_open(model / file, "pt") as shard:
                renamed = {name: _new_name(name, renumber) for name in shard.keys()}  # noqa: SIM118 (no dict)
                tensors = {new: shard.get_tensor(name) for name, new in renamed.items() if new}
                if tensors:
                    save_file(tensors, folder / file, metadata=shard.metadata())
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot copy {model / file} ({error}); get the file again") from None
        names |= set(renamed)
        index["weight_map"] |= dict.fromkeys(tensors, file)
        index["metadata"]["total_size"] += sum(tensor.nbytes for tensor in tensors.values())
    found = {int(layer[2]) for layer in map(LAYER.fullmatch, names) if layer}
    if found != set(range(depth)):
        raise UserError(f"{model}: config.json says {depth} layers, the weights hold {len(found)} as model.layers.N")
    if (model / INDEX).exists():
        _write_json(folder / INDEX, index)


def _shards(model: Path) -> list[str]:
    if not (model / INDEX).exists():
        return ["model.safetensors"]
    try:
        return sorted(set(json.loads((model / INDEX).read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{model / INDEX}: not a safetensors index ({error}); get the file again") from None


def _new_name(name: str, renumber: dict[int, int]) -> str | None:
    """The tensor's name in the pruned model; None where its layer is dropped."""
    layer = LAYER.fullmatch(name)
    if layer is None:
        return name
    new = renumber.get(int(layer[2]))
    return None if new is None else f"{layer[1]}{new}{layer[3]}"


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def main(
    model: Annotated[Path, typer.Argument(help="Hugging Face directory with safetensors")],
    output: Annotated[Path, typer.Argument(help="new folder")],
    drop: Annotated[str, typer.Option(help="layers to leave out, counted from 0: 12,16,20")],
) -> None:
    """Leave decoder layers out of a model."""
    try:
        layers = [int(layer) for layer in drop.split(",")]
    except ValueError:
        raise UserError(f"--drop {drop!r} is no list of layer numbers; write 12,16,20") from None
    left = prune_depth(model, output, layers)
    print(f"{output}: {left} layers, {len(layers)} fewer than {model}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
