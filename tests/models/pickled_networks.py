"""Checkpoints as the StyleGAN family pickles them, made with stand-ins that bear the names of the real modules."""

from __future__ import annotations

import pickle
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

BOOBY_TRAP = "raise SystemExit('the embedded source was executed')\n"


@contextmanager
def family() -> Iterator[type]:
    """Yield a base class whose instances are pickled as torch_utils.persistence does; the modules vanish again at the end."""
    names = ("dnnlib", "dnnlib.util", "torch_utils", "torch_utils.persistence", "training", "training.networks_stylegan2")
    modules = {name: types.ModuleType(name) for name in names}

    def _reconstruct_persistent_obj(meta: dict[str, Any]) -> object:
        raise AssertionError("a persistent object was reconstructed")

    class EasyDict(dict):  # type: ignore[type-arg]
        pass

    EasyDict.__module__, EasyDict.__qualname__ = "dnnlib.util", "EasyDict"
    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    modules["dnnlib.util"].EasyDict = EasyDict  # type: ignore[attr-defined]
    modules["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]

    class Persistent(nn.Module):
        rendering_kwargs = EasyDict(box_warp=1)

        def __reduce__(self) -> tuple[Any, ...]:
            state = self.__dict__ | {"_init_kwargs": EasyDict(z_dim=512), "_last_planes": None}
            meta = {"type": "class", "version": 6, "module_src": BOOBY_TRAP, "class_name": "Any", "state": state}
            return (_reconstruct_persistent_obj, (meta,), None)

    sys.modules.update(modules)
    try:
        yield Persistent
    finally:
        for name in names:
            sys.modules.pop(name, None)


def _tree(base: type, shapes: dict[str, tuple[int, ...]], buffers: tuple[str, ...], generator: torch.Generator, even: bool) -> nn.Module:
    root: nn.Module = base()
    for name, shape in shapes.items():
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, base())
            module = module._modules[part]  # type: ignore[assignment]
        value = torch.randn(shape, generator=generator)
        value = value / max(1, value[0].numel()) ** 0.5 if even and value.ndim > 1 else value
        if leaf in buffers:
            module.register_buffer(leaf, value)
        else:
            module.register_parameter(leaf, nn.Parameter(value))
    root.register_buffer("scratch", torch.zeros(3), persistent=False)
    return root


def eg3d_shapes(depth: int = 1) -> dict[str, tuple[int, ...]]:
    """Names and shapes of EG3D's generator, thin where its checkpoints may differ."""
    shapes: dict[str, tuple[int, ...]] = {"backbone.mapping.w_avg": (512,), "backbone.mapping.embed.weight": (512, 25)}
    for k in range(2):
        shapes |= {f"backbone.mapping.fc{k}.weight": (512, 512), f"backbone.mapping.fc{k}.bias": (512,)}
    shapes["backbone.synthesis.b4.const"] = (8, 4, 4)
    for size in (4, 8, 256):
        prefix = f"backbone.synthesis.b{size}"
        shapes |= {f"{prefix}.resample_filter": (4, 4), f"{prefix}.torgb.affine.weight": (8, 512)}
        shapes |= {f"{prefix}.torgb.weight": (96 * depth, 8, 1, 1), f"{prefix}.torgb.bias": (96 * depth,)}
        shapes |= {f"{prefix}.conv1.weight": (8, 8, 3, 3), f"{prefix}.conv1.noise_strength": (), f"{prefix}.conv1.noise_const": (8, 8)}
    for block, width in (("block0", 32), ("block1", 8)):
        shapes |= {f"superresolution.{block}.conv0.weight": (8, width, 3, 3), f"superresolution.{block}.torgb.weight": (3, 8, 1, 1)}
    return shapes | {
        "decoder.net.0.weight": (64, 32), "decoder.net.0.bias": (64,), "decoder.net.2.weight": (33, 64), "decoder.net.2.bias": (33,),
    }  # fmt: skip


def portrait4d_shapes() -> dict[str, tuple[int, ...]]:
    """Some of the names and shapes of Portrait4D's reconstructor: one or more of each part."""
    return {
        "encoder_global.encoder.conv1.weight": (64, 5, 7, 7),
        "encoder_detail.encoder.0.weight": (64, 5, 7, 7),
        "encoder_canonical.patch_embed.proj.weight": (1024, 256, 1, 1),
        "generator_triplane.conv_last.weight": (96, 128, 3, 3),
        "superresolution.block0.conv0.weight": (8, 32, 3, 3),
        "decoder.net.0.weight": (64, 32),
        "decoder.out_sigma.weight": (1, 64),
        "decoder.out_rgb.weight": (32, 64),
        "w_avg": (512,),
    }


BUFFERS = ("w_avg", "resample_filter", "noise_const")


def network_pickle(
    shapes: dict[str, tuple[int, ...]], protocol: int | None = None, even: bool = False
) -> tuple[bytes, dict[str, torch.Tensor]]:
    """Return a snapshot {"G": ..., "G_ema": ..., "training_set_kwargs": ...} and the state dict of its G_ema.

    even: weights that keep the variance of what goes through them.
    """
    generator = torch.Generator().manual_seed(0)
    with family() as base:
        other, averaged = (_tree(base, shapes, BUFFERS, generator, even) for _ in range(2))
        easy = sys.modules["dnnlib.util"].EasyDict(path="data.zip")
        content = pickle.dumps({"training_set_kwargs": easy, "G": other, "D": None, "G_ema": averaged}, protocol=protocol)
        return content, averaged.state_dict()
