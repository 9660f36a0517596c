"""Generators of tri-planes of the EG3D family (EG3D, arXiv 2112.07945; PanoHead, arXiv 2303.13071): converted checkpoint -> Head.

`models convert` writes the file; its names are the published ones, its metadata says how the planes are read. The networks'
super-resolution and background are left out: a Head is rendered from the field itself, by the one renderer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from portrait_backend.models.checkpoint_kinds import KINDS, Planes
from portrait_backend.models.conversion import METADATA_KEY
from portrait_backend.prior.stylegan import Backbone, EqualisedLinear, StyleGanConfig, ToPlanes
from portrait_backend.radiance.decoder import FEATURES, DensityActivation, SoftplusDecoder
from portrait_backend.radiance.head import Head, TriPlane
from portrait_shared.errors import PortraitDiffusionError

UNUSED = ("superresolution.", "bcg_synthesis.", "t_mapping.")
"""Parts of the checkpoints that a Head doesn't need: the image network, the background, the correction of training cameras."""
SURFACE_DENSITY = 9.0
"""Density at the surface: EG3D's shapes are the level set 10 of the raw density, and softplus(10 - 1) is 9.0001."""


class _Decoder(nn.Module):
    """The published names of the decoder's layers."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.layers = EqualisedLinear(channels, hidden), EqualisedLinear(hidden, 1 + FEATURES)  # a tuple registers nothing
        self.net = nn.Sequential(self.layers[0], nn.Softplus(), self.layers[1])


class PlaneGenerator(nn.Module):
    """Backbone and decoder of an EG3D-family generator; `torgb` where the checkpoint makes its raw colours with one (PanoHead)."""

    def __init__(self, config: StyleGanConfig, kind: str, hidden: int = 64, with_colours: bool = False) -> None:
        super().__init__()
        planes = KINDS[kind].planes
        if config.out_channels != 3 * planes.channels * planes.depth:
            raise ValueError(f"{kind} planes have {3 * planes.channels * planes.depth} channels, got {config.out_channels}")
        self.kind, self.conventions = kind, planes
        self.backbone = Backbone(config)
        self.decoder = _Decoder(planes.channels, hidden)
        self.torgb = ToPlanes(FEATURES, 3, config.w_dim) if with_colours else None

    def latent(self, z: Tensor, label: Tensor, truncation: float = 0.7) -> Tensor:
        """Return w (w_dim,) for z (z_dim,) and a camera's label (25,); see `Camera.eg3d_label`."""
        w: Tensor = self.backbone.mapping(z[None], label[None], truncation)[0]
        return w

    @property
    def mean_latent(self) -> Tensor:
        """The w (w_dim,) of the mean head, where an inversion starts."""
        return self.backbone.mapping.w_avg

    def head(self, w: Tensor) -> Head:
        """Return the head of w (w_dim,), or of one w per style (styles, w_dim). Gradients flow into planes, decoder excepted."""
        planes = self.conventions
        features = neutral_planes(self.backbone(w), planes)
        triplane = TriPlane(features, planes.depth, planes.axes, planes.half_extent, planes.reduce, planes.padding)
        activation = DensityActivation("softplus", bias=planes.density_bias, surface=SURFACE_DENSITY)
        return Head(triplane, triplane, self.head_decoder(w), activation, None, {"provider": self.kind}, planes.bounds)

    @torch.no_grad()
    def head_decoder(self, w: Tensor) -> SoftplusDecoder:
        """Return the decoder with its gains folded in, and with colours in [0, 1] as its first three features.

        PanoHead's features are linear and a 1 x 1 convolution makes rgb in [-1, 1] of the rendered ones: the same as making it of
        each sample, so the convolution becomes part of the last layer.
        """
        hidden, last = self.decoder.layers
        weight, bias = (x.clone() for x in last.folded())
        linear = self.kind == "panohead"
        if linear:
            rgb_weight, rgb_bias = weight[1:4], bias[1:4]
            if self.torgb is not None:
                mixing = self.torgb.weight[:, :, 0, 0] * self.torgb.style(w.reshape(-1, w.shape[-1])[-1:])
                rgb_weight, rgb_bias = mixing @ weight[1:], mixing @ bias[1:] + self.torgb.bias
            weight[1:4], bias[1:4] = rgb_weight / 2, (rgb_bias + 1) / 2
        decoder = SoftplusDecoder(hidden.weight.shape[1], hidden.weight.shape[0], "linear" if linear else "sigmoid")
        folded = dict(zip(("hidden1.weight", "hidden1.bias"), hidden.folded(), strict=True))
        decoder.load_state_dict(folded | {"out.weight": weight, "out.bias": bias})
        return decoder.requires_grad_(False).eval()


def neutral_planes(output: Tensor, planes: Planes) -> Tensor:
    """Turn a backbone's output (1, 3 * C * D, H, W) into a Head's planes (3, D * C, H, W), slice after slice."""
    size = output.shape[-2:]
    if planes.channel_order == "slice-major":
        return output.reshape(3, planes.depth * planes.channels, *size)
    channels_first = output.reshape(3, planes.channels, planes.depth, *size)
    return channels_first.transpose(1, 2).reshape(3, planes.depth * planes.channels, *size)


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> StyleGanConfig:
    """Read the sizes of a backbone from the shapes of its tensors. KeyError or ValueError where they are not there."""
    blocks = {int(m[1]): shapes[name][0] for name in shapes if (m := re.fullmatch(r"backbone\.synthesis\.b(\d+)\.conv1\.weight", name))}
    layers = sum(bool(re.fullmatch(r"backbone\.mapping\.fc\d+\.weight", name)) for name in shapes)
    finest = max(blocks)
    w_dim, label_dim = shapes["backbone.mapping.embed.weight"]
    inputs = shapes["backbone.mapping.fc0.weight"][1]
    out_channels = shapes[f"backbone.synthesis.b{finest}.torgb.weight"][0]
    return StyleGanConfig(blocks, out_channels, w_dim, inputs - w_dim, label_dim, layers)


def load_generator(path: Path, device: torch.device | None = None) -> PlaneGenerator:
    """Load what `models convert` wrote; fp32, evaluation mode. PortraitDiffusionError ``weights-missing`` or ``weights-unreadable``."""
    if not path.is_file():
        hint = "Make it with portrait-diffusion models convert"
        raise PortraitDiffusionError("weights-missing", f"there is no checkpoint at {path}", hint)
    try:
        with safe_open(path, framework="pt", device=str(device or "cpu")) as file:
            kind = json.loads((file.metadata() or {})[METADATA_KEY])["kind"]
            names = [name for name in file.keys() if not name.startswith(UNUSED)]  # noqa: SIM118 - not a dict
            tensors = {name: file.get_tensor(name).float() for name in names}
        generator = build_generator(kind, {name: tuple(value.shape) for name, value in tensors.items()})
        generator.load_state_dict(tensors, assign=True)
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = "Convert the published checkpoint again with portrait-diffusion models convert"
        raise PortraitDiffusionError("weights-unreadable", f"{path} is no generator of planes ({reason})", hint) from error
    return generator.requires_grad_(False).eval()


def build_generator(kind: str, shapes: Mapping[str, tuple[int, ...]]) -> PlaneGenerator:
    """Return an empty generator (on the meta device) for tensors of these names and shapes."""
    if kind not in ("eg3d", "panohead"):
        raise ValueError(f"it holds a {kind} network")
    with torch.device("meta"):
        return PlaneGenerator(config_of(shapes), kind, shapes["decoder.net.0.weight"][0], "torgb.weight" in shapes)
