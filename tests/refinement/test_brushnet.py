"""Branches that start from a BrushNet: every tensor of a real-shaped checkpoint has its place, and what is copied computes the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from portrait_backend.refinement.brushnet import read_brushnet, source_names, start_from_brushnet
from portrait_backend.refinement.hybrid_priors import Conditions, HybridPriors
from portrait_shared.errors import PortraitDiffusionError
from tests.diffusion.full_models import SD15_UNET, TINY_UNET, brushnet_names, brushnet_weights, full_size_branches


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**TINY_UNET).eval()


def test_the_published_layout_is_known_at_full_size() -> None:
    with torch.device("meta"):
        names = brushnet_names(UNet2DConditionModel(**SD15_UNET))
        checkpoint = {name: torch.empty(shape) for name, shape in names.items()}
    assert len(checkpoint) == 322, "264 of the UNet's names, conv_in and 28 zero convolutions"
    assert sum(name.startswith("brushnet_") for name in checkpoint) == 56
    model = full_size_branches()
    done = start_from_brushnet(model, checkpoint)
    assert done.left == (), "nothing of the checkpoint is without a place"
    assert set(done.new) == {name for name in model.state_dict() if name.startswith(("geometry", "fusion"))}
    assert {name for name in done.copied if name.startswith("explicit")} == {n for n in model.state_dict() if n.startswith("explicit")}
    assert sum(name.startswith("zero") for name in done.copied) == 56
    assert str(done) == f"{len(done.copied)} tensors copied, {len(done.new)} new, 0 of the checkpoint left"


def test_values_land_where_their_names_say(unet: UNet2DConditionModel) -> None:
    weights, model = brushnet_weights(unet), HybridPriors.of_unet(unet)
    start_from_brushnet(model, weights)
    own = model.state_dict()
    assert torch.equal(own["explicit.conv_in.weight"], weights["conv_in_condition.weight"])
    assert torch.equal(own["implicit.conv_in.weight"], weights["conv_in_condition.weight"][:, :8]), "without the mask's column"
    for ours, theirs in (
        ("zero.0", "brushnet_down_blocks.0"),
        ("zero.11", "brushnet_down_blocks.11"),
        ("zero.12", "brushnet_mid_block"),
        ("zero.13", "brushnet_up_blocks.0"),
        ("zero.27", "brushnet_up_blocks.14"),
    ):
        assert torch.equal(own[f"{ours}.weight"], weights[f"{theirs}.weight"]) and torch.equal(
            own[f"{ours}.bias"], weights[f"{theirs}.bias"]
        )
    for branch in ("explicit", "implicit"):
        name = "up_blocks.1.resnets.2.conv1.weight"
        assert torch.equal(own[f"{branch}.{name}"], weights[name])
    assert float(own["fusion.3.out.weight"].abs().max()) == 0 == float(own["geometry.out.weight"].abs().max())


def test_untrained_parts_change_nothing_so_that_they_may_be_left_out(unet: UNet2DConditionModel) -> None:
    whole, explicit = (HybridPriors.of_unet(unet, implicit=share).eval() for share in (1.0, 0.0))
    for model in (whole, explicit):
        start_from_brushnet(model, brushnet_weights(unet))
    assert explicit.implicit is None and not any(name.startswith(("implicit", "fusion")) for name in source_names(explicit))
    draw = torch.Generator().manual_seed(1)
    latents = [torch.randn(1, 4, 8, 8, generator=draw) for _ in range(4)]
    told = Conditions(latents[1], torch.ones(1, 1, 8, 8), latents[2], latents[3])
    with torch.no_grad():
        results = [m(latents[0], torch.tensor([300]), torch.tensor(0.5), told) for m in (whole, explicit)]
    assert len(results[0]) == 28 and all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert max(float(r.abs().max()) for r in results[1]) > 1e-3, "BrushNet's weights do something"


def test_a_thinner_branch_and_a_strange_tensor_are_reported(unet: UNet2DConditionModel) -> None:
    weights = brushnet_weights(unet) | {"odd.weight": torch.zeros(3)}
    before = HybridPriors.of_unet(unet, implicit=0.5)
    kept = before.implicit.mid_block.resnets[0].conv1.weight.clone()  # type: ignore[union-attr]
    done = start_from_brushnet(before, weights)
    assert "odd.weight" in done.left and "implicit.mid_block.resnets.0.conv1.weight" in done.new
    assert torch.equal(kept, before.implicit.mid_block.resnets[0].conv1.weight)  # type: ignore[union-attr]
    del weights["brushnet_mid_block.weight"]
    assert "zero.12.weight" in start_from_brushnet(before, weights).new


def test_folders_that_are_no_brushnet_are_refused(tmp_path: Path) -> None:
    for content, code in ((None, "weights-missing"), (b"text", "weights-unreadable"), ({"a": torch.zeros(1)}, "weights-unreadable")):
        path = tmp_path / "diffusion_pytorch_model.safetensors"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            save_file(content, path)
        with pytest.raises(PortraitDiffusionError) as caught:
            read_brushnet(tmp_path)
        assert caught.value.code == code
