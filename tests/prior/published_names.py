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


PORTRAIT4D = {
    "stages": (64, 128, 256, 512), "encoded": 256, "tokens": 1024, "detail": (64, 96), "middle": (256, 128), "sr": (256, 128),
    "motion": 548, "latent": 512, "cells": 64, "background": (64, 128, 256, 512),
}  # fmt: skip
"""Portrait4D's widths as published; those of the parts that are not used too."""
PORTRAIT4D_THIN = {
    "stages": (4, 4, 8, 8), "encoded": 8, "tokens": 16, "detail": (4, 6), "middle": (8, 6), "sr": (4, 4),
    "motion": 5, "latent": 512, "cells": 2, "background": (4, 4, 4, 4),
}  # fmt: skip


def _layer(name: str, *shape: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": shape} | ({f"{name}.bias": shape[:1]} if bias else {})


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _mlp(name: str, width: int) -> Shapes:
    shapes = _layer(f"{name}.fc1", 2 * width, width) | _layer(f"{name}.dwconv.dwconv", 2 * width, 1, 3, 3)
    return shapes | _layer(f"{name}.fc2", width, 2 * width)


def _attention(name: str, width: int) -> Shapes:
    return _layer(f"{name}.q", width, width) | _layer(f"{name}.kv", 2 * width, width) | _layer(f"{name}.proj", width, width)


def portrait4d_used(w: dict) -> Shapes:  # type: ignore[type-arg]
    """The tensors of the static path."""
    stages, encoded, tokens, (d0, d1), (wide, narrow) = w["stages"], w["encoded"], w["tokens"], w["detail"], w["middle"]
    shapes = _layer("encoder_global.encoder.conv1", stages[0], 5, 7, 7, bias=False)
    before = stages[0]
    for stage, (count, width) in enumerate(zip((3, 4, 6, 3), stages, strict=True), 1):
        for k in range(count):
            block, inputs = f"encoder_global.encoder.layer{stage}.{k}", before if k == 0 else width
            shapes |= _layer(f"{block}.conv1", width, inputs, 3, 3, bias=False) | _layer(f"{block}.conv2", width, width, 3, 3, bias=False)
            if k == 0 and stage > 1:
                shapes |= _layer(f"{block}.downsample.0", width, inputs, 1, 1, bias=False)
        before = width
    aspp = "encoder_global.decoder.0"
    shapes |= _layer(f"{aspp}.convs.0.0", encoded, before, 1, 1, bias=False)
    for k in (1, 2, 3):
        shapes |= _layer(f"{aspp}.convs.{k}.0", encoded, before, 3, 3, bias=False)
    shapes |= _layer(f"{aspp}.convs.4.1", encoded, before, 1, 1, bias=False)
    shapes |= _layer(f"{aspp}.project.0", encoded, 5 * encoded, 1, 1, bias=False)
    shapes |= _layer("encoder_global.decoder.1", encoded, encoded, 3, 3, bias=False)
    shapes |= _layer("encoder_detail.encoder.0", d0, 5, 7, 7)
    for k, inputs in ((2, d0), (4, d1), (6, d1), (8, d1)):
        shapes |= _layer(f"encoder_detail.encoder.{k}", d1, inputs, 3, 3)
    shapes |= _layer("encoder_canonical.patch_embed.proj", tokens, encoded, 3, 3) | _norm("encoder_canonical.patch_embed.norm", tokens)
    for part in ("neutral", "motion"):
        for k in range(4):
            block = f"encoder_canonical.trans_blocks_{part}.{k}"
            shapes |= _norm(f"{block}.norm1", tokens) | _attention(f"{block}.attn1", tokens)
            shapes |= _norm(f"{block}.norm3", tokens) | _mlp(f"{block}.mlp", tokens)
    for k, (inputs, outputs) in {1: (tokens // 4, narrow), 4: (narrow, narrow), 6: (narrow, d1)}.items():
        shapes |= _layer(f"encoder_canonical.convs.{k}", outputs, inputs, 3, 3)
    g = "generator_triplane"
    shapes |= _layer(f"{g}.convs1.0", wide, 2 * d1, 3, 3) | _layer(f"{g}.convs1.2", narrow, wide, 3, 3)
    shapes |= _layer(f"{g}.patch_embed.proj", tokens, narrow, 3, 3) | _norm(f"{g}.patch_embed.norm", tokens)
    block = f"{g}.trans_blocks.0"
    shapes |= _norm(f"{block}.norm1", tokens) | _attention(f"{block}.attn", tokens) | _layer(f"{block}.attn.sr", tokens, tokens, 2, 2)
    shapes |= _norm(f"{block}.attn.norm", tokens) | _norm(f"{block}.norm2", tokens) | _mlp(f"{block}.mlp", tokens)
    shapes |= _layer(f"{g}.convs2.0", wide, tokens // 4 + d1, 3, 3) | _layer(f"{g}.convs2.2", narrow, wide, 3, 3)
    shapes |= _layer(f"{g}.convs2.4", narrow, narrow, 3, 3) | _layer(f"{g}.conv_last", 96, narrow, 3, 3)
    return shapes | _layer("decoder.net.0", 64, 32) | _layer("decoder.out_sigma", 1, 64) | _layer("decoder.out_rgb", 32, 64)


def portrait4d_unused(w: dict) -> Shapes:  # type: ignore[type-arg]
    """The rest: what motion features drive, the background, the image network, the mean style."""
    tokens, latent, (a, b, c, d) = w["tokens"], w["latent"], w["background"]
    shapes: Shapes = {"w_avg": (512,)}
    for part in ("maps", "maps_neutral"):
        shapes |= _layer(f"encoder_canonical.{part}.0", latent, w["motion"]) | _layer(f"encoder_canonical.{part}.2", latent, latent)
    for part in ("proj_y", "proj_y_neutral"):
        shapes |= _layer(f"encoder_canonical.{part}", w["cells"] * tokens, latent)
    for part in ("neutral", "motion"):
        for k in range(4):
            block = f"encoder_canonical.trans_blocks_{part}.{k}"
            shapes |= _norm(f"{block}.norm2", tokens) | _attention(f"{block}.attn2", tokens)
    shapes |= _layer("background.input_conv.0", a, 5, 3, 3)
    for k, (inputs, outputs) in enumerate(((a, b), (b, c), (c, d)), 1):
        down = f"background.down_conv_{k}"
        shapes |= _layer(f"{down}.0", inputs, inputs, 3, 3) | _layer(f"{down}.2.op", outputs, inputs, 3, 3)
    shapes |= _layer("background.middle.0", d, d, 3, 3)
    for k, (inputs, outputs) in enumerate(((2 * d, c), (2 * c, b), (2 * b, a), (2 * a, a)), 1):
        up = f"background.up_conv_{k}"
        shapes |= _layer(f"{up}.0", outputs, inputs, 3, 3) | _layer(f"{up}.2.conv", outputs, outputs, 3, 3)
    shapes |= _layer("background.out_conv", 32, a, 3, 3)
    before = 32
    for k, width in enumerate(w["sr"]):
        block = f"superresolution.block{k}"
        for layer, inputs in (("conv0", before), ("conv1", width)):
            shapes |= _layer(f"{block}.{layer}", width, inputs, 3, 3) | _layer(f"{block}.{layer}.affine", inputs, 512)
        shapes |= to_rgb(f"{block}.torgb", width, 3)
        before = width
    return shapes
