"""Names and shapes of the tensors in published EG3D-family generators, written down from the architecture, not from our modules."""

from __future__ import annotations

Shapes = dict[str, tuple[int, ...]]


def full_channels() -> dict[int, int]:
    """Channels per resolution at the published size: 32768 / resolution, at most 512."""
    return {2**k: min(32768 // 2**k, 512) for k in range(2, 9)}


def backbone(channels: dict[int, int], out: int, layers: int = 2) -> Shapes:
    shapes: Shapes = {
        "backbone.mapping.w_avg": (512,),
        "backbone.mapping.embed.weight": (512, 25),
        "backbone.mapping.embed.bias": (512,),
    }
    for k in range(layers):
        shapes |= {f"backbone.mapping.fc{k}.weight": (512, 512 if k else 1024), f"backbone.mapping.fc{k}.bias": (512,)}
    before = 0
    for size, width in channels.items():
        block = f"backbone.synthesis.b{size}"
        shapes[f"{block}.resample_filter"] = (4, 4)
        shapes |= {} if before else {f"{block}.const": (width, 4, 4)}
        for layer, inputs in (("conv0", before), ("conv1", width)):
            if inputs:
                shapes |= {
                    f"{block}.{layer}.weight": (width, inputs, 3, 3),
                    f"{block}.{layer}.bias": (width,),
                    f"{block}.{layer}.noise_strength": (),
                    f"{block}.{layer}.noise_const": (size, size),
                    f"{block}.{layer}.resample_filter": (4, 4),
                    f"{block}.{layer}.affine.weight": (inputs, 512),
                    f"{block}.{layer}.affine.bias": (inputs,),
                }
        shapes |= to_rgb(f"{block}.torgb", width, out)
        before = width
    return shapes


def to_rgb(name: str, inputs: int, outputs: int) -> Shapes:
    return {
        f"{name}.weight": (outputs, inputs, 1, 1),
        f"{name}.bias": (outputs,),
        f"{name}.affine.weight": (inputs, 512),
        f"{name}.affine.bias": (inputs,),
    }


def generator(kind: str, channels: dict[int, int]) -> Shapes:
    """EG3D's or PanoHead's generator, without what a Head doesn't need."""
    shapes = backbone(channels, 288 if kind == "panohead" else 96)
    shapes |= {"decoder.net.0.weight": (64, 32), "decoder.net.0.bias": (64,)}
    shapes |= {"decoder.net.2.weight": (33, 64), "decoder.net.2.bias": (33,)}
    return shapes | (to_rgb("torgb", 32, 3) if kind == "panohead" else {})


def unused(width: int = 4) -> Shapes:
    """Some of the rest: the image network, and PanoHead's background and camera mapping."""
    return {
        "superresolution.block0.conv0.weight": (width, 32, 3, 3),
        "superresolution.block1.torgb.weight": (3, width, 1, 1),
        "bcg_synthesis.b4.const": (width, 4, 4),
        "t_mapping.fc0.weight": (3, 8),
    }
