"""The head file: one safetensors, planes as fp16, everything else that makes the head as JSON in its metadata.

The same head gives the same bytes: safetensors orders tensors itself, and all metadata is one sorted JSON string.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from portrait_backend.radiance.decoder import Decoder, DensityActivation, SoftplusDecoder
from portrait_backend.radiance.head import ORIGIN, Head, TriPlane
from portrait_backend.radiance.super_resolution import SuperResolution, SuperResolutionConfig
from portrait_shared.errors import PortraitDiffusionError

FORMAT, METADATA_KEY = 1, "portrait_diffusion_head"
Network = TypeVar("Network", bound=torch.nn.Module)
HINT = "Use a head.safetensors that this program wrote, or generate the head again"


def _plane_record(plane: TriPlane) -> dict[str, Any]:
    record = {"depth": plane.depth, "axes": plane.axes, "half_extent": plane.half_extent, "reduce": plane.reduce}
    if plane.padding != "border":
        record["padding"] = plane.padding
    return record if plane.centre == ORIGIN else record | {"centre": plane.centre}


def _decoder_record(decoder: Decoder) -> dict[str, Any]:
    sizes = {"channels": decoder.hidden1.in_features, "hidden": decoder.hidden1.out_features}
    return sizes | ({"colour": decoder.colour} if isinstance(decoder, SoftplusDecoder) else {})


def head_bytes(head: Head, precision: torch.dtype = torch.float16) -> bytes:
    """Serialise a head, its planes in `precision`. ValueError if a plane value is not finite in it or `meta` is not JSON data."""
    tensors: dict[str, Tensor] = {}
    record: dict[str, Any] = {
        "format": FORMAT,
        "activation": asdict(head.activation),
        "decoder": _decoder_record(head.decoder),
        "super_resolution": None if head.super_resolution is None else head.super_resolution.config_dict(),
        "meta": head.meta,
        "appearance": None,
    }
    if head.bounds is not None:
        record["bounds"] = head.bounds
    if head.region is not None:
        record["region"] = len(head.region)
        tensors["region"] = torch.from_numpy(np.packbits(head.region.cpu().numpy()))
    for name in ("geometry",) if head.appearance is head.geometry else ("geometry", "appearance"):
        plane: TriPlane = getattr(head, name)
        tensors[name] = plane.features.detach().to("cpu", precision).contiguous()
        if not bool(torch.isfinite(tensors[name]).all()):
            raise ValueError(
                f"the {name} planes hold values that are not finite in {precision} (largest: {plane.planes.abs().max().item():g})"
            )
        record[name] = _plane_record(plane)
    for name, network in (("decoder", head.decoder), ("super_resolution", head.super_resolution)):
        if network is not None:
            for key, value in network.state_dict().items():
                tensors[f"{name}.{key}"] = value.detach().to("cpu", torch.float32).contiguous()
    return save(tensors, {METADATA_KEY: json.dumps(record, sort_keys=True, allow_nan=False)})


def save_head(head: Head, path: Path, precision: torch.dtype = torch.float16) -> None:
    """Write the file at once: a killed program leaves the old file or none, never half of one."""
    content = head_bytes(head, precision)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load_head(path: Path) -> Head:
    """Read a head file: planes and networks in fp32 on the CPU."""
    try:
        return _read(path)
    except FileNotFoundError as error:
        raise PortraitDiffusionError("head-unreadable", f"There is no head file at {path}", HINT) from error
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PortraitDiffusionError("head-unreadable", f"{path} is not a readable head file ({reason})", HINT) from error


def _read(path: Path) -> Head:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if METADATA_KEY not in metadata:
            raise ValueError("it has no head description")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    record = json.loads(metadata[METADATA_KEY])
    if record["format"] != FORMAT:
        raise ValueError(f"its format is {record['format']}, this version reads {FORMAT}")
    geometry = _plane(tensors["geometry"], record["geometry"])
    appearance = geometry if record["appearance"] is None else _plane(tensors["appearance"], record["appearance"])
    kind = SoftplusDecoder if "colour" in record["decoder"] else Decoder
    decoder = _load_weights(kind(**record["decoder"]), tensors, "decoder.")
    network = None
    if record["super_resolution"] is not None:
        network = _load_weights(SuperResolution(SuperResolutionConfig(**record["super_resolution"])), tensors, "super_resolution.")
    bounds = tuple(float(x) for x in record["bounds"]) if "bounds" in record else None
    region = _region(tensors["region"], record["region"]) if "region" in record else None
    activation = DensityActivation(**record["activation"])
    return Head(geometry, appearance, decoder, activation, network, record["meta"], bounds, region)  # type: ignore[arg-type]


def _region(packed: Tensor, n: int) -> Tensor:
    if n < 1 or packed.numel() != (n**3 + 7) // 8:
        raise ValueError(f"its region is not one of {n} cells a side")
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=n**3).astype(bool).reshape(n, n, n))


def _plane(features: Tensor, record: dict[str, Any]) -> TriPlane:
    a, b, c = (tuple(int(i) for i in row) for row in record["axes"])
    padding, centre = record.get("padding", "border"), tuple(float(x) for x in record.get("centre", ORIGIN))
    return TriPlane(features.float(), record["depth"], (a, b, c), record["half_extent"], record["reduce"], padding, centre)  # type: ignore[arg-type]


def _load_weights(network: Network, tensors: dict[str, Tensor], prefix: str) -> Network:
    network.load_state_dict({name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)})
    return network.eval().requires_grad_(False)
