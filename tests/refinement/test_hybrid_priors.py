"""The Hybrid Priors model on stock diffusers UNets: layout, zero start, switches, and where gradients go."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from portrait_backend.diffusion.denoiser import starter_denoiser, tiny_denoiser
from portrait_backend.radiance.cameras import Camera
from portrait_backend.refinement.branches import Branch, BranchConfig
from portrait_backend.refinement.hybrid_priors import Conditions, HybridPriors, HybridPriorsConfig, tap_warps
from portrait_backend.refinement.injection import injected, tap_modules
from portrait_backend.refinement.weights import check_partners, fingerprint, load_hybrid_priors, save_hybrid_priors
from portrait_shared.errors import PortraitDiffusionError
from tests.geometry.spheres import view_of

SIZE = 16
SD15_TAPS = (*[320] * 4, *[640] * 3, *[1280] * 5, 1280, *[1280] * 8, *[640] * 4, *[320] * 3)


def tiny_unet(seed: int = 0) -> UNet2DConditionModel:
    return tiny_denoiser(seed).unet


def model_of(unet: UNet2DConditionModel, random: bool = False, **widths: float) -> HybridPriors:
    torch.manual_seed(3)
    model = HybridPriors.of_unet(unet, **widths)
    if random:
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.1)
    return model


def told(model: HybridPriors, batch: int = 1, seed: int = 0) -> Conditions:
    g = torch.Generator().manual_seed(seed)
    r = lambda c: torch.randn(batch, c, SIZE, SIZE, generator=g)  # noqa: E731
    views = [view_of(Camera.orbit(a, 0, 4 * SIZE))[0] for a in (0, 25)]
    if batch > 1:
        views = [v[[0] * batch] for v in views]
    return Conditions(r(4), (r(1) > 0).float(), r(4), r(4), r(4), r(4), tap_warps(model.config, views[0], views[1], SIZE))


def inputs(batch: int = 1, width: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(9)
    z = torch.randn(batch, 4, SIZE, SIZE, generator=g)
    return z, torch.full((batch,), 300), torch.full((batch, 1, 1, 1), 0.5), torch.randn(batch, 6, width, generator=g)


def test_sd15_has_28_taps_of_the_known_widths() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        model = HybridPriors(HybridPriorsConfig.of_unet(unet.config))
    assert model.config.taps == SD15_TAPS
    assert len(tap_modules(unet)) == len(model.zero) == len(model.fusion) == 28
    assert model.explicit.conv_in.weight.shape == (320, 9, 3, 3) and model.implicit.conv_in.weight.shape == (320, 8, 3, 3)
    fusion = sum(p.numel() for p in model.fusion.parameters())
    assert 34e6 < fusion < 36e6, "bottlenecks, not full 3x3 res-blocks of 743 M"
    weights, own = unet.state_dict(), model.explicit.state_dict()
    fits = [name for name, value in own.items() if name in weights and weights[name].shape == value.shape]
    assert len(own) - len(fits) == 1, "all but conv_in.weight are the UNet's own names and shapes"
    assert not any("attention" in name for name in own)


def test_taps_come_in_the_order_and_size_of_the_unets_own_modules() -> None:
    unet = tiny_unet()
    model = model_of(unet)
    z, t, _, tokens = inputs()
    shapes: list[tuple[int, ...]] = []
    hooks = [
        m.register_forward_hook(lambda _m, _i, o: shapes.append(tuple((o[0] if isinstance(o, tuple) else o).shape)))
        for m in tap_modules(unet)[1:]
    ]
    unet(z, t, tokens)
    for hook in hooks:
        hook.remove()
    features = model.explicit(torch.cat([z, z, z[:, :1]], 1), t)
    assert [tuple(f.shape) for f in features[1:]] == shapes
    assert [f.shape[1] for f in features] == list(model.config.taps)


def test_the_starters_branches_stay_under_their_budget() -> None:
    model = HybridPriors.of_unet(starter_denoiser().unet, implicit=0.5)
    assert sum(p.numel() for p in model.parameters()) <= 6.5e6


def test_a_branch_starts_as_the_unet_without_attention() -> None:
    unet = tiny_unet()
    weights = unet.state_dict()
    branch = Branch(9, BranchConfig.of_unet(unet.config))
    copied = branch.copy_unet(weights, mask_channels=1)
    assert copied == len(branch.state_dict())
    own = branch.state_dict()
    assert torch.equal(own["mid_block.resnets.1.conv1.weight"], weights["mid_block.resnets.1.conv1.weight"])
    assert torch.equal(own["conv_in.weight"][:, :4], weights["conv_in.weight"])
    assert torch.equal(own["conv_in.weight"][:, 4:8], weights["conv_in.weight"])
    assert (own["conv_in.weight"][:, 8] == 0).all()


def test_the_branch_computes_what_the_unet_computes_where_neither_has_attention() -> None:
    plain = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "mid_block_type": None}
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=2, norm_num_groups=4,
        cross_attention_dim=8, **plain,
    )  # fmt: skip
    branch = Branch(4, BranchConfig.of_unet(unet.config))
    branch.copy_unet(unet.state_dict())
    z, t, _, tokens = inputs()
    seen: list[torch.Tensor] = []
    modules = [unet.conv_in, *[m for block in unet.down_blocks for m in [*block.resnets, *(block.downsamplers or ())]]]
    hooks = [m.register_forward_hook(lambda _m, _i, o: seen.append(o)) for m in modules]
    unet(z, t, tokens)
    for hook in hooks:
        hook.remove()
    for ours, theirs in zip(branch(z, t), seen, strict=False):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("guided", [1, 2])
def test_an_untrained_model_changes_nothing_bit_for_bit(guided: int) -> None:
    unet = tiny_unet()
    model = model_of(unet)
    z, t, a, tokens = inputs()
    residuals = model(z, t, a, told(model))
    z, t, tokens = z.repeat(guided, 1, 1, 1), t.repeat(guided), tokens.repeat(guided, 1, 1)
    with torch.no_grad():
        before = unet(z, t, tokens).sample
        with injected(unet, residuals):
            during = unet(z, t, tokens).sample
        after = unet(z, t, tokens).sample
    assert torch.equal(before, during) and torch.equal(before, after)


def test_a_trained_model_changes_both_halves_alike_and_leaves_no_hook() -> None:
    unet = tiny_unet()
    model = model_of(unet, random=True)
    z, t, a, tokens = inputs()
    residuals = model(z, t, a, told(model))
    both = (torch.cat([z, z]), torch.cat([t, t]), torch.cat([tokens, tokens]))
    with torch.no_grad():
        before = unet(*both).sample
        with injected(unet, residuals):
            during = unet(*both).sample
        with pytest.raises(RuntimeError), injected(unet, residuals):
            raise RuntimeError("interrupted")
        after = unet(*both).sample
    assert (during - before).abs().max() > 1e-3
    torch.testing.assert_close(during[0], during[1])
    assert torch.equal(before, after)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())


def test_tap_zero_is_not_in_conv_ins_skip_but_the_others_are() -> None:
    unet = tiny_unet()
    model = model_of(unet)
    z, t, _, tokens = inputs()
    zeros = [
        torch.zeros(1, c, *f.shape[2:]) for c, f in zip(model.config.taps, model.explicit(torch.cat([z, z, z[:, :1]], 1), t), strict=True)
    ]
    skips: list[torch.Tensor] = []
    last: torch.nn.Module = unet.up_blocks[-1]

    def remember(_: torch.nn.Module, __: tuple[object, ...], kwargs: dict[str, tuple[torch.Tensor, ...]]) -> None:
        skips.extend(kwargs["res_hidden_states_tuple"])

    hook = last.register_forward_pre_hook(remember, with_kwargs=True)
    with torch.no_grad():
        unet(z, t, tokens)
        plain = list(skips)
        for tap in (0, 1):
            skips.clear()
            changed = list(zeros)
            changed[tap] = zeros[tap] + 1
            with injected(unet, changed):
                unet(z, t, tokens)
            assert torch.equal(skips[0], plain[0]), "conv_in's own skip stays"
            assert not torch.equal(skips[1], plain[1])
    hook.remove()


def test_the_scales_switch_parts_off() -> None:
    unet = tiny_unet()
    model = model_of(unet, random=True)
    z, t, a, _ = inputs()
    all_told = told(model)
    full = model(z, t, a, all_told)
    assert all((r == 0).all() for r in model(z, t, a, all_told, w_ex=0.0))
    for one, half in zip(full, model(z, t, a, all_told, w_ex=0.5), strict=True):
        torch.testing.assert_close(half, one * 0.5)
    without = model(z, t, a, all_told.without(implicit=True))
    for a_, b in zip(model(z, t, a, all_told, w_im=0.0), without, strict=True):
        assert torch.equal(a_, b)
    assert any(not torch.equal(x, y) for x, y in zip(full, without, strict=True))
    explicit = model(z, t, a, all_told.without(geometry=True, implicit=True))
    assert any(not torch.equal(x, y) for x, y in zip(explicit, without, strict=True))


def test_the_literal_form_reads_the_targets_noise_instead_of_the_drivers() -> None:
    model = model_of(tiny_unet(), random=True)
    z, t, a, _ = inputs()
    own = told(model)
    other = Conditions(own.projected, own.mask, own.render, own.normal, own.driver, own.driver_noise * 2, own.warps)  # type: ignore[operator]
    differs = lambda x, y: any(not torch.equal(p, q) for p, q in zip(x, y, strict=True))  # noqa: E731
    assert differs(model(z, t, a, own), model(z, t, a, other))
    assert not differs(model(z, t, a, own, literal=True), model(z, t, a, other, literal=True))
    assert differs(model(z, t, a, own), model(z, t, a, own, literal=True))
    silent = Conditions(own.projected, own.mask, driver=own.driver, warps=own.warps)
    with pytest.raises(ValueError, match="anchor noise"):
        model(z, t, a, silent)


def test_gradients_reach_the_branches_only() -> None:
    unet = tiny_unet()
    model = model_of(unet, random=True)
    z, t, a, tokens = inputs()
    with injected(unet, model(z, t, a, told(model))):
        unet(z, t, tokens).sample.pow(2).sum().backward()
    assert all(p.grad is None for p in unet.parameters())
    missing = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert not missing


def test_a_thinner_branch_works_and_survives_its_file(tmp_path: Path) -> None:
    unet = tiny_unet()
    model = model_of(unet, random=True, implicit=0.5)
    assert model.config.implicit.channels == (4, 4, 4, 4)
    path = tmp_path / "hybrid_priors.safetensors"
    save_hybrid_priors(model, path, steps="3")
    loaded = load_hybrid_priors(path)
    assert loaded.config == model.config and not any(p.requires_grad for p in loaded.parameters())
    z, t, a, _ = inputs()
    with torch.no_grad():
        for one, two in zip(model(z, t, a, told(model)), loaded(z, t, a, told(model)), strict=True):
            torch.testing.assert_close(one, two, atol=0.02, rtol=0.02)


def test_files_that_are_not_the_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(PortraitDiffusionError) as caught:
        load_hybrid_priors(tmp_path / "nothing.safetensors")
    assert caught.value.code == "weights-missing"
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not weights")
    with pytest.raises(PortraitDiffusionError) as caught:
        load_hybrid_priors(broken)
    assert caught.value.code == "weights-unreadable"


def test_the_wrong_number_of_residuals_is_refused() -> None:
    with pytest.raises(ValueError, match="taps, got 3"), injected(tiny_unet(), [torch.zeros(1)] * 3):
        pass


def test_branches_of_another_denoiser_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    denoiser, other = tiny_denoiser(0), tiny_denoiser(1)
    path, silent = tmp_path / "hybrid_priors.safetensors", tmp_path / "silent.safetensors"
    model = model_of(denoiser.unet)
    save_hybrid_priors(model, path, denoiser=fingerprint(denoiser))
    check_partners(path, denoiser=denoiser)
    with pytest.raises(PortraitDiffusionError, match="another denoiser") as caught:
        check_partners(path, denoiser=other)
    assert caught.value.code == "weights-mismatched"
    save_hybrid_priors(model, silent)
    with caplog.at_level(logging.WARNING):
        check_partners(silent, denoiser=other)
    assert "doesn't say which denoiser" in caplog.text
