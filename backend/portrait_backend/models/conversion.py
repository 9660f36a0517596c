"""Convert a pickled checkpoint into safetensors, once and safely: nothing in the pickle is executed.

The tensors keep their published names, shapes, types and bits. Layers of the StyleGAN family multiply their weights by a gain at run
time: that is left to whoever builds the network, so that the file can be compared with the published one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from portrait_backend.files import atomic_path
from portrait_backend.models.checkpoint_kinds import KINDS
from portrait_backend.models.pickle_reader import Call, PickleRefused
from portrait_backend.models.store import sha256_of
from portrait_backend.models.tensor_records import Checkpoint, describe, open_checkpoint
from portrait_shared.errors import PortraitDiffusionError

NETWORKS = ("G_ema", "G", "params_ema", "state_dict", "model", "params")
"""Where the generator lies in a checkpoint that holds several things; the averaged one first."""
DICTIONARIES = ("collections.OrderedDict", "dnnlib.util.EasyDict", "builtins.dict", "__builtin__.dict")
PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
MAX_DEPTH, MAX_TENSORS = 64, 100_000
METADATA_KEY = "portrait_diffusion_checkpoint"


@dataclass(frozen=True)
class Converted:
    """What was written: number of tensors, bytes of the file, which network of the checkpoint, sha256 of the checkpoint."""

    tensors: int
    size: int
    network: str
    source_sha256: str


def convert_checkpoint(source: Path, kind: str, output: Path) -> Converted:
    """Write the checkpoint's network as safetensors with the conventions of its kind as metadata.

    PortraitDiffusionError ``checkpoint-kind-unknown``, ``checkpoint-unreadable`` (no such file, damaged, or asking for more than
    tensors), ``checkpoint-unexpected`` (another network than `kind`), ``output-not-empty`` or ``output-not-writable``.
    """
    if kind not in KINDS:
        raise PortraitDiffusionError("checkpoint-kind-unknown", f"there is no kind {kind!r} of checkpoints", f"Use {', '.join(KINDS)}")
    if output.exists():
        raise PortraitDiffusionError("output-not-empty", f"{output} exists already", "Choose another file with -o")
    network, tensors = read_checkpoint(source)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    if missing := KINDS[kind].missing(shapes):
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        what = f"{source} ({network}, {len(tensors)} tensors) is no {kind} network: {missing[0]}{more}"
        raise PortraitDiffusionError("checkpoint-unexpected", what, f"Choose the kind it is with --as: {', '.join(KINDS)}")
    digest = sha256_of(source)
    record = {"kind": kind, "network": network, "source": source.name, "source_sha256": digest, "planes": asdict(KINDS[kind].planes)}
    try:
        with atomic_path(output) as temporary:
            save_file(tensors, temporary, metadata={METADATA_KEY: json.dumps(record, sort_keys=True)})
    except (OSError, SafetensorError) as error:
        raise PortraitDiffusionError("output-not-writable", f"can't write {output} ({error})", "Choose another place") from error
    return Converted(len(tensors), output.stat().st_size, network, digest)


def read_checkpoint(source: Path) -> tuple[str, dict[str, Tensor]]:
    """Return which network of a pickled checkpoint was taken and its tensors by name; ``checkpoint-unreadable``."""
    try:
        with open_checkpoint(source) as checkpoint:
            network, node = choose(checkpoint.root)
            return network, dict(_flatten(checkpoint, node))
    except FileNotFoundError as error:
        raise PortraitDiffusionError("checkpoint-unreadable", f"there is no file {source}", "Name the checkpoint's file") from error
    except (PickleRefused, OSError) as error:
        hint = "Download it again; a file that asks for more than tensors should not be trusted"
        raise PortraitDiffusionError("checkpoint-unreadable", f"{source} can't be converted: {error}", hint) from error


def choose(root: Any) -> tuple[str, Any]:
    """Return the generator of a checkpoint and where it was; the root itself if that is a network or a state dict."""
    if module_state(root) is not None:
        return "network", root
    entries = mapping(root)
    if entries is None:
        raise PickleRefused(f"it holds no network but {describe(root)}")
    for key in NETWORKS:
        inner = entries.get(key)
        if module_state(inner) is not None or (inner and mapping(inner) is not None):
            return key, inner
    return "state dict", root


def mapping(node: Any) -> dict[Any, Any] | None:
    """Return the items of a record that is a dictionary of any sort, None if it is none."""
    if isinstance(node, dict):
        return node
    if isinstance(node, Call) and node.is_call_of(*DICTIONARIES):
        return node.items
    return None


def module_state(node: Any) -> dict[Any, Any] | None:
    """Return the state of a record that is a torch module: a persistent object of the StyleGAN family, or one pickled as it is."""
    if not isinstance(node, Call):
        return None
    state = node.state
    if node.is_call_of(PERSISTENT):
        meta = mapping(node.arguments[0]) if isinstance(node.arguments, tuple) and len(node.arguments) == 1 else None
        state = meta.get("state") if meta is not None else None
    fields = mapping(state)
    return fields if fields is not None and "_parameters" in fields and "_modules" in fields else None


def _flatten(checkpoint: Checkpoint, root: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and tensors of a module as its state_dict() would, or those of a state dict."""
    count = visited = 0
    waiting: list[tuple[str, Any, int]] = [("", root, 0)]
    while waiting:
        prefix, node, depth = waiting.pop()
        visited += 1
        if depth > MAX_DEPTH or visited > MAX_TENSORS:
            raise PickleRefused(f"it holds more than {MAX_TENSORS} modules, or nested more than {MAX_DEPTH} deep")
        fields = module_state(node)
        if fields is None and depth == 0:
            tensors = dict(mapping(node) or {})
        elif fields is None:
            continue
        else:
            passing = _texts(fields.get("_non_persistent_buffers_set"))
            buffers = {name: value for name, value in _part(fields, "_buffers").items() if name not in passing}
            tensors = {**_part(fields, "_parameters"), **buffers}
            inner = [(f"{prefix}{_text(name)}.", module, depth + 1) for name, module in _part(fields, "_modules").items()]
            waiting += reversed(inner)
        for name, value in tensors.items():
            tensor = checkpoint.tensor(value)
            if tensor is None and fields is not None and value is not None:
                raise PickleRefused(f"{prefix}{name} is {describe(value)} instead of a tensor")
            count += 1
            if count > MAX_TENSORS:
                raise PickleRefused(f"it holds more than {MAX_TENSORS} tensors")
            if tensor is not None:
                yield f"{prefix}{_text(name)}", tensor
    if not count:
        raise PickleRefused("it holds no tensors")


def _part(fields: dict[Any, Any], name: str) -> dict[Any, Any]:
    return mapping(fields.get(name)) or {}


def _text(name: Any) -> str:
    if not isinstance(name, str):
        raise PickleRefused(f"a tensor's name is {describe(name)}")
    return name


def _texts(record: Any) -> set[str]:
    """Return the texts in the record of a set or a list."""
    if isinstance(record, Call):
        record = record.values or (record.arguments[0] if isinstance(record.arguments, tuple) and record.arguments else [])
    return {value for value in record if isinstance(value, str)} if isinstance(record, list | tuple) else set()
