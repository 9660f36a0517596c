"""Portrait4D's reconstructor (arXiv 2311.18729), static: a portrait to tri-planes in one pass. Written anew from the published structure.

Modules are named so that the state dict of the published checkpoint loads. Left out is what the static path doesn't use: the layers that
are driven by motion features (their output is multiplied by zero), the deformation, the background and the image network.

    photo 512 + coordinates -> global encoder (ResNet-34 without normalisation, stride 8, ASPP)  256 x 64 x 64
                            -> canonical encoder (transformer at 32 x 32, convolutions upward)    96 x 256 x 256
                            -> detail encoder (five convolutions)                                96 x 256 x 256
                            -> generator (both together, a transformer at 128 x 128)             96 x 256 x 256 = three planes of 32
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from portrait_backend.prior.stylegan import EqualisedLinear
from portrait_backend.radiance.decoder import FEATURES

SLOPE = 0.01
INPUTS = 5
"""rgb in [-1, 1] and the pixels' coordinates x, y in [-1, 1]."""
STAGES = (3, 4, 6, 3)
"""Residual blocks of the four stages of ResNet-34."""
DILATIONS = (12, 24, 36)


@dataclass(frozen=True)
class Portrait4DConfig:
    """Sizes as published: widths of the ResNet stages, of ASPP, tokens, detail, generator; attention heads; the decoder's hidden layer."""

    stages: tuple[int, int, int, int] = (64, 128, 256, 512)
    encoded: int = 256
    tokens: int = 1024
    detail: tuple[int, int] = (64, 96)
    middle: tuple[int, int] = (256, 128)
    blocks_neutral: int = 4
    blocks_motion: int = 4
    heads: int = 4
    generator_heads: int = 2
    hidden: int = 64
    planes: int = 96


def with_coordinates(image: Tensor) -> Tensor:
    """Append the pixels' x and y in [-1, 1] to (B, C, H, W)."""
    batch, _, height, width = image.shape
    axes = [torch.linspace(-1, 1, n, device=image.device, dtype=image.dtype) for n in (height, width)]
    y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.cat([image, torch.stack([x, y]).expand(batch, -1, -1, -1)], 1)


class _ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions without normalisation, and a 1 x 1 one beside them at the start of a stage."""

    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, dilation, dilation, bias=False)
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False)) if shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.conv1(x)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class _ResNet(nn.Module):
    """Stride 8: the last two stages keep the resolution and dilate their kernels by 2 and 4."""

    def __init__(self, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(INPUTS, widths[0], 7, 2, 3, bias=False)
        before = widths[0]
        for number, (count, width, stride, dilation) in enumerate(zip(STAGES, widths, (1, 2, 1, 1), (1, 1, 2, 4), strict=True), 1):
            blocks = [
                _ResidualBlock(before if k == 0 else width, width, stride if k == 0 else 1, dilation, k == 0 and number > 1)
                for k in range(count)
            ]
            before = width
            self.add_module(f"layer{number}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 3, 2, 1)
        for number in range(1, 5):
            x = self.get_submodule(f"layer{number}")(x)
        return x


class _Pooled(nn.Sequential):
    """The mean over the picture, through a 1 x 1 convolution, everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).expand(-1, -1, *x.shape[2:])


class _Aspp(nn.Module):
    """Atrous spatial pyramid pooling (DeepLabV3, arXiv 1706.05587)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        dilated = [nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=d, dilation=d, bias=False), nn.ReLU()) for d in DILATIONS]
        single = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.ReLU())
        pooled = _Pooled(nn.AdaptiveAvgPool2d(1), nn.Conv2d(inputs, outputs, 1, bias=False), nn.ReLU())
        self.convs = nn.ModuleList([single, *dilated, pooled])
        self.project = nn.Sequential(nn.Conv2d(5 * outputs, outputs, 1, bias=False), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.project(torch.cat([convolution(x) for convolution in self.convs], 1))
        return projected


class GlobalEncoder(nn.Module):
    """The sitter as a whole: (B, 5, H, W) to (B, 256, H / 8, W / 8)."""

    def __init__(self, c: Portrait4DConfig) -> None:
        super().__init__()
        self.encoder = _ResNet(c.stages)
        self.decoder = nn.Sequential(
            _Aspp(c.stages[-1], c.encoded), nn.Conv2d(c.encoded, c.encoded, 3, padding=1, bias=False), nn.ReLU()
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Encode (B, 5, H, W)."""
        encoded: Tensor = self.decoder(self.encoder(x))
        return encoded


class DetailEncoder(nn.Module):
    """What is fine: (B, 5, H, W) to (B, 96, H / 2, W / 2)."""

    def __init__(self, c: Portrait4DConfig) -> None:
        super().__init__()
        first, width = c.detail
        layers: list[nn.Module] = [nn.Conv2d(INPUTS, first, 7, 2, 3), nn.LeakyReLU(SLOPE)]
        for inputs in (first, width, width, width):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.LeakyReLU(SLOPE)]
        self.encoder = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Encode (B, 5, H, W)."""
        detail: Tensor = self.encoder(x)
        return detail


class PatchEmbedding(nn.Module):
    """Overlapping patches at half the resolution: (B, C, H, W) to tokens (B, H / 2 * W / 2, width)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv2d(inputs, width, 3, 2, 1), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the tokens and how many lie above and beside each other."""
        x = self.proj(x)
        return self.norm(x.flatten(2).transpose(1, 2)), (x.shape[2], x.shape[3])


class Attention(nn.Module):
    """Self-attention; keys and values at 1 / reduction of the resolution (SegFormer, arXiv 2105.15203)."""

    def __init__(self, width: int, heads: int, reduction: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.sr = nn.Conv2d(width, width, reduction, reduction) if reduction > 1 else None
        self.norm = nn.LayerNorm(width) if reduction > 1 else None

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Map tokens (B, N, C) that lie as `size` says."""
        seen = x
        if self.sr is not None and self.norm is not None:
            seen = self.norm(self.sr(as_image(x, size)).flatten(2).transpose(1, 2))
        q = self._split(self.q(x))
        k, v = (self._split(part) for part in self.kv(seen).chunk(2, -1))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        projected: Tensor = self.proj(attended)
        return projected

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class _DepthWise(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 3, padding=1, groups=width)


class Mlp(nn.Module):
    """Two layers with a depth-wise convolution between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.dwconv, self.fc2 = nn.Linear(width, 2 * width), _DepthWise(2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Map tokens (B, N, C) that lie as `size` says."""
        y = self.dwconv.dwconv(as_image(self.fc1(x), size)).flatten(2).transpose(1, 2)
        mixed: Tensor = self.fc2(F.gelu(y))
        return mixed


class CanonicalBlock(nn.Module):
    """A block of the canonical encoder without its cross-attention, which is off in the static path."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn1 = nn.LayerNorm(width), Attention(width, heads)
        self.norm3, self.mlp = nn.LayerNorm(width), Mlp(width)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Map tokens (B, N, C) that lie as `size` says."""
        x = x + self.attn1(self.norm1(x), size)
        return x + self.mlp(self.norm3(x), size)


class CanonicalEncoder(nn.Module):
    """The global features brought to the front: (B, 256, H, W) to (B, 96, 4 H, 4 W)."""

    def __init__(self, c: Portrait4DConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(c.encoded, c.tokens)
        self.trans_blocks_neutral = nn.ModuleList([CanonicalBlock(c.tokens, c.heads) for _ in range(c.blocks_neutral)])
        self.trans_blocks_motion = nn.ModuleList([CanonicalBlock(c.tokens, c.heads) for _ in range(c.blocks_motion)])
        inner = c.middle[1]
        self.convs = nn.Sequential(
            nn.UpsamplingBilinear2d(scale_factor=2),
            nn.Conv2d(c.tokens // 4, inner, 3, padding=1),
            nn.ReLU(),
            nn.UpsamplingBilinear2d(scale_factor=2),
            nn.Conv2d(inner, inner, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(inner, c.detail[1], 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Encode (B, 256, H, W)."""
        tokens, size = self.patch_embed(x)
        for block in (*self.trans_blocks_neutral, *self.trans_blocks_motion):
            tokens = block(tokens, size)
        features: Tensor = self.convs(F.pixel_shuffle(as_image(tokens, size), 2))
        return features


class GeneratorBlock(nn.Module):
    """A transformer block with reduced keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width, heads, reduction=2)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Map tokens (B, N, C) that lie as `size` says."""
        x = x + self.attn(self.norm1(x), size)
        return x + self.mlp(self.norm2(x), size)


class PlaneDecoder(nn.Module):
    """Canonical features and details (B, 96, H, W) each to the planes (B, 96, H, W)."""

    def __init__(self, c: Portrait4DConfig) -> None:
        super().__init__()
        wide, narrow = c.middle
        self.convs1 = nn.Sequential(*_leaky(2 * c.detail[1], wide), *_leaky(wide, narrow))
        self.patch_embed = PatchEmbedding(narrow, c.tokens)
        self.trans_blocks = nn.ModuleList([GeneratorBlock(c.tokens, c.generator_heads)])
        self.convs2 = nn.Sequential(*_leaky(c.tokens // 4 + c.detail[1], wide), *_leaky(wide, narrow), *_leaky(narrow, narrow))
        self.conv_last = nn.Conv2d(narrow, c.planes, 3, padding=1)

    def forward(self, canonical: Tensor, detail: Tensor) -> Tensor:
        """Make planes."""
        tokens, size = self.patch_embed(self.convs1(torch.cat([canonical, detail], 1)))
        for block in self.trans_blocks:
            tokens = block(tokens, size)
        x = F.pixel_shuffle(as_image(tokens, size), 2)
        planes: Tensor = self.conv_last(self.convs2(torch.cat([x, canonical], 1)))
        return planes


class _Decoder(nn.Module):
    """The published names of the decoder's layers; `portrait4d.head_decoder` folds them."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(EqualisedLinear(channels, hidden), nn.Softplus())
        self.out_sigma, self.out_rgb = EqualisedLinear(hidden, 1), EqualisedLinear(hidden, FEATURES)


class Reconstructor(nn.Module):
    """The photo's crop to planes; `decoder` holds what reads them."""

    def __init__(self, config: Portrait4DConfig | None = None) -> None:
        super().__init__()
        c = config or Portrait4DConfig()
        self.encoder_global, self.encoder_detail = GlobalEncoder(c), DetailEncoder(c)
        self.encoder_canonical, self.generator_triplane = CanonicalEncoder(c), PlaneDecoder(c)
        self.decoder = _Decoder(c.planes // 3, c.hidden)

    def forward(self, crop: Tensor) -> Tensor:
        """Map crops (B, 3, H, W) in [-1, 1] to planes (B, 96, H / 2, W / 2): three of 32 channels. H and W are multiples of 16."""
        x = with_coordinates(crop)
        planes: Tensor = self.generator_triplane(self.encoder_canonical(self.encoder_global(x)), self.encoder_detail(x))
        return planes


def as_image(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Return tokens (B, H * W, C) as (B, C, H, W)."""
    return tokens.transpose(1, 2).unflatten(2, size)


def _leaky(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(inputs, outputs, 3, padding=1), nn.LeakyReLU(SLOPE)


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> Portrait4DConfig:
    """Read the sizes from the shapes of a checkpoint's tensors; KeyError where they are not there. Attention heads are as published."""

    def width(name: str) -> int:
        return shapes[f"{name}.weight"][0]

    stages = tuple(width(f"encoder_global.encoder.layer{n}.0.conv1") for n in range(1, 5))

    def blocks(part: str) -> int:
        return len({name.split(".")[2] for name in shapes if name.startswith(f"encoder_canonical.trans_blocks_{part}.")})

    return Portrait4DConfig(
        stages=(stages[0], stages[1], stages[2], stages[3]),
        encoded=width("encoder_global.decoder.1"),
        tokens=width("encoder_canonical.patch_embed.proj"),
        detail=(width("encoder_detail.encoder.0"), width("encoder_detail.encoder.2")),
        middle=(width("generator_triplane.convs1.0"), width("generator_triplane.convs1.2")),
        blocks_neutral=blocks("neutral"),
        blocks_motion=blocks("motion"),
        hidden=width("decoder.net.0"),
        planes=width("generator_triplane.conv_last"),
    )
