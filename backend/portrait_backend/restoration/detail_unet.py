"""The Detail Preservation UNet phi: a residual on the tri-plane channels whose last convolution starts at zero, so step 0 is the prior."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from portrait_backend.models import weights_path
from portrait_backend.precision import convolution_layout
from portrait_backend.radiance.head import Head
from portrait_backend.radiance.triplane import STARTER_AXES, Axes
from portrait_shared.errors import PortraitDiffusionError

DETAIL_WEIGHTS = "detail_unet.safetensors"


@dataclass(frozen=True)
class DetailUNetConfig:
    """channels: of one plane, C * D, twice that where colour has planes of its own; widths per level; groups of the norms.

    stride: texels of the planes that one of the residual spans; axes: the planes' world axes, which tell what two of them share.
    """

    channels: int = 128
    widths: tuple[int, ...] = (64, 96, 160)
    groups: int = 8
    stride: int = 2
    axes: Axes = STARTER_AXES


class _Block(nn.Module):
    def __init__(self, before: int, after: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, before), nn.GroupNorm(groups, after)
        self.conv1, self.conv2 = nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        y: Tensor = self.skip(x) + self.conv2(F.silu(self.norm2(h)))
        return y


class Across(nn.Module):
    """What the other planes know: their features averaged along the axis that this plane lacks, at every place of the axis they share.

    Planes alone see shadows of a head; an ear is where front and side agree. (Rodin's "3D-aware convolution", arXiv 2212.06135.)
    """

    def __init__(self, channels: int, axes: Axes) -> None:
        super().__init__()
        self.axes = axes
        self.along = nn.ModuleList([nn.Conv1d(channels, channels, 1) for _ in range(2)])

    def forward(self, h: Tensor) -> Tensor:
        """Add to features (3, C, S, S) of the planes."""
        means = (h.mean(2), h.mean(3))
        added = []
        for k in range(3):
            terms = []
            for place in (0, 1):
                others = [
                    (j, self.axes[j].index(self.axes[k][place])) for j in range(3) if j != k and self.axes[k][place] in self.axes[j][:2]
                ]
                vector = torch.stack([means[at][j] for j, at in others]).mean(0)
                value: Tensor = self.along[place](vector)
                terms.append(value[:, None] if place == 0 else value[:, :, None])
            added.append(terms[0] + terms[1])
        return h + torch.stack(added)


class DetailPreservationUNet(nn.Module):
    """phi. The three planes go through the same convolutions, told apart by a learned offset, and tell one another along shared axes."""

    def __init__(self, config: DetailUNetConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or DetailUNetConfig()
        self.checkpointing = True
        """Whether the insides of the blocks are computed again in the backward pass instead of being kept."""
        w, last = c.widths, len(c.widths) - 1
        self.stem = nn.Conv2d(c.channels, w[0], c.stride + 2 if c.stride > 1 else 3, stride=c.stride, padding=1)
        self.plane = nn.Parameter(torch.zeros(3, w[0], 1, 1))
        self.across = nn.ModuleList([Across(n, c.axes) for n in w])
        self.down = nn.ModuleList([_Block(n, n, c.groups) for n in w])
        self.smaller = nn.ModuleList([nn.Conv2d(w[k], w[k + 1], 3, stride=2, padding=1) for k in range(last)])
        self.larger = nn.ModuleList([nn.Conv2d(w[k + 1], w[k], 3, padding=1) for k in range(last)])
        self.up = nn.ModuleList([_Block(2 * w[k], w[k], c.groups) for k in range(last)])
        self.last = nn.GroupNorm(c.groups, w[0])  # without it the last activation can die in training, and the residual becomes a constant
        self.out = nn.Conv2d(w[0], c.channels, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        if self.out.bias is not None:
            nn.init.zeros_(self.out.bias)
        for conv in (m for m in self.modules() if isinstance(m, nn.Conv2d)):
            conv.weight.data = conv.weight.data.contiguous(memory_format=convolution_layout("cpu"))

    def forward(self, planes: Tensor) -> Tensor:
        """Return the residual (3, channels, S / stride, S / stride) of neutral planes (3, channels, S, S).

        ValueError unless S is divisible by stride * 2^(levels - 1).
        """
        multiple, side = self.config.stride * 2 ** len(self.smaller), planes.shape[-1]
        if planes.shape != (3, self.config.channels, side, side) or side % multiple:
            raise ValueError(
                f"phi reads square planes (3, {self.config.channels}, S, S), S divisible by {multiple}, got {tuple(planes.shape)}"
            )
        h, kept = self.stem(planes.contiguous(memory_format=convolution_layout(planes.device.type))) + self.plane, []
        for k, block in enumerate(self.down):
            h = self._run(block, self.across[k](h))
            if k < len(self.smaller):
                kept.append(h)
                h = self.smaller[k](h)
        for k in reversed(range(len(kept))):
            h = self.larger[k](F.interpolate(h, scale_factor=2.0, mode="nearest"))
            h = self._run(self.up[k], torch.cat([h, kept[k]], 1))
        residual: Tensor = self.out(F.silu(self.last(h)))
        return residual

    def _run(self, block: nn.Module, h: Tensor) -> Tensor:
        again = self.checkpointing and torch.is_grad_enabled()
        result: Tensor = checkpoint(block, h, use_reentrant=False) if again else block(h)
        return result


def config_for(head: Head) -> DetailUNetConfig:
    """Return the sizes that fit a head."""
    channels = head.geometry.depth * head.geometry.channels
    return DetailUNetConfig(channels=channels if head.appearance is head.geometry else 2 * channels, axes=head.geometry.axes)


def save_detail_unet(phi: DetailPreservationUNet, path: Path, weights: dict[str, Tensor] | None = None, **facts: str) -> None:
    """Write phi as fp16 with its configuration and `facts` as metadata."""
    half = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in (weights or phi.state_dict()).items()}
    save_file(half, path, metadata={"kind": "detail_unet", "config": json.dumps(asdict(phi.config))} | facts)


def load_detail_unet(where: Path | str) -> DetailPreservationUNet:
    """Read phi in fp32 from a file, or the shipped one ("starter").

    PortraitDiffusionError ``weights-missing`` or ``weights-unreadable``.
    """
    path = weights_path(where, DETAIL_WEIGHTS)
    try:
        with safe_open(path, framework="pt") as file:
            values = json.loads((file.metadata() or {})["config"])
            weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - not a dict
        phi = DetailPreservationUNet(
            DetailUNetConfig(**values | {"widths": tuple(values["widths"]), "axes": tuple(tuple(a) for a in values["axes"])})
        )
        phi.load_state_dict(weights)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PortraitDiffusionError(
            "weights-unreadable", f"{path} holds no Detail Preservation UNet ({reason})", "Copy the file again, or train it again"
        ) from error
    return phi
