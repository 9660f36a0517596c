"""The Head: saving and loading, its lattice cache, separate planes, super-resolution."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from portrait_backend.radiance.analytic import ellipsoid_head
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.decoder import DensityActivation
from portrait_backend.radiance.head import Head, TriPlane
from portrait_backend.radiance.head_file import METADATA_KEY, head_bytes
from portrait_backend.radiance.super_resolution import SuperResolution, SuperResolutionConfig
from portrait_shared.errors import PortraitDiffusionError

CAMERA = Camera.orbit(30, 10, 32)


def _two_plane_head() -> Head:
    head = ellipsoid_head(depth=2, size=16)
    features = torch.randn(3, 32, 24, 24, generator=torch.Generator().manual_seed(5))
    appearance = TriPlane(features, 1, ((0, 1, 2), (1, 2, 0), (2, 0, 1)), 0.6, "mean")
    network = SuperResolution(SuperResolutionConfig(width=8, fine_width=8, blocks=1))
    activation, meta = DensityActivation(gain=4.0), {"seed": 7, "provider": "test"}
    region = torch.rand(5, 5, 5, generator=torch.Generator().manual_seed(6)) < 0.7
    return replace(head, appearance=appearance, super_resolution=network, activation=activation, meta=meta, region=region)


@pytest.mark.parametrize("make", [lambda: ellipsoid_head(size=16), _two_plane_head])
def test_what_was_saved_is_loaded_and_saving_it_again_gives_the_same_bytes(make: object, tmp_path: Path) -> None:
    head: Head = make()  # type: ignore[operator]
    path, again = tmp_path / "head.safetensors", tmp_path / "again.safetensors"
    head.save(path)
    loaded = Head.load(path)
    assert torch.equal(loaded.geometry.planes, head.geometry.planes.half().float())
    assert torch.equal(loaded.appearance.planes, head.appearance.planes.half().float())
    assert (loaded.appearance is loaded.geometry) == (head.appearance is head.geometry)
    for plane, original in ((loaded.geometry, head.geometry), (loaded.appearance, head.appearance)):
        for name in ("axes", "depth", "half_extent", "reduce"):
            assert getattr(plane, name) == getattr(original, name), name
    assert (loaded.activation, loaded.meta) == (head.activation, head.meta)
    points = torch.rand(500, 3, generator=torch.Generator().manual_seed(1)) - 0.5
    assert torch.equal(loaded.inside(points), head.inside(points))
    assert bool(head.inside(points).all()) == (head.region is None)
    for a, b in zip(loaded.parameters(), head.parameters(), strict=True):
        assert torch.equal(a, b)
    loaded.save(again)
    assert path.read_bytes() == again.read_bytes()


def test_saving_is_deterministic_and_leaves_one_file(tmp_path: Path) -> None:
    head = _two_plane_head()
    assert len({head_bytes(head) for _ in range(5)}) == 1
    head.save(tmp_path / "head.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["head.safetensors"]


def test_a_failed_save_keeps_the_old_file(tmp_path: Path) -> None:
    head, path = ellipsoid_head(size=8), tmp_path / "head.safetensors"
    head.save(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="1e\\+06"):
        head.with_planes(TriPlane(head.geometry.features * 0 + 1e6)).save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def _rewrite(path: Path, **changes: object) -> None:
    head = ellipsoid_head(size=8)
    head.save(path)
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()[METADATA_KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, {METADATA_KEY: json.dumps({**record, **changes})})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 99}, "99"),
        ({"decoder": {"channels": 16, "hidden": 64}}, "size mismatch|loading state_dict"),
        ({"activation": {"colour": 1}}, "colour"),
        ({"geometry": {}}, "axes"),
    ],
)
def test_files_that_are_no_head_are_named(changes: dict[str, object], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    _rewrite(path, **changes)
    with pytest.raises(PortraitDiffusionError, match=reason) as caught:
        Head.load(path)
    assert caught.value.code == "head-unreadable"
    assert str(path) in caught.value.message


@pytest.mark.parametrize("content", [None, b"", b"not a head", b"\xff" * 100])
def test_missing_and_broken_files_are_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PortraitDiffusionError) as caught:
        Head.load(path)
    assert caught.value.code == "head-unreadable"


def test_a_truncated_head_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    ellipsoid_head(size=8).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(PortraitDiffusionError, match="head"):
        Head.load(path)


def test_the_lattice_is_kept_until_the_planes_or_the_decoder_change() -> None:
    head = ellipsoid_head(size=16)
    first = head.density_grid(16)
    assert head.density_grid(16) is first
    head.geometry.planes.mul_(1.1)
    second = head.density_grid(16)
    assert second is not first
    with torch.no_grad():
        head.decoder.out.bias.add_(0.1)
    assert head.density_grid(16) is not second


def test_nothing_is_outside_the_region() -> None:
    head = ellipsoid_head(size=16)
    region = torch.zeros(4, 4, 4, dtype=torch.bool)
    region[:, :, 2:] = True  # z, y, x: the half at positive x
    half = head.within(region)
    side = torch.tensor([[0.05, 0.0, 0.0], [-0.05, 0.0, 0.0]])
    assert (half.density(side) > 0).tolist() == [True, False] and float(head.density(side).min()) > 0
    kept = half.with_planes(appearance=half.appearance.with_planes(half.appearance.planes + 1))
    assert kept.region is half.region, "the region stays when planes change"
    alpha = half.render(Camera.orbit(0, 0, 16)).alpha
    assert float(alpha[8, 6]) < 0.01 < 0.99 < float(alpha[8, 9])


def test_geometry_planes_drive_density_and_appearance_planes_colour() -> None:
    head = _two_plane_head()
    points = torch.rand(64, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    density, rgb = head.decode(points)
    assert torch.equal(density, head.density(points))
    assert torch.allclose(rgb.clamp(0, 1), head.colour(points))
    changed = head.with_planes(appearance=head.appearance.with_planes(head.appearance.planes + 1))
    assert torch.equal(changed.density(points), density)
    assert not torch.allclose(changed.colour(points), head.colour(points))
    reshaped = head.with_planes(geometry=head.geometry.with_planes(head.geometry.planes + 1))
    assert not torch.allclose(reshaped.density(points), density)
    assert torch.equal(reshaped.colour(points), head.colour(points))


def test_shared_planes_stay_shared() -> None:
    head = ellipsoid_head(size=8)
    changed = head.with_planes(head.geometry.with_planes(head.geometry.planes + 1))
    assert changed.appearance is changed.geometry


def test_features_start_with_the_colour() -> None:
    head, points = ellipsoid_head(size=8), torch.rand(16, 3) - 0.5
    assert torch.allclose(head.decode(points, features=True)[1][:, :3], head.decode(points)[1], atol=1e-6)
    assert head.decode(points, features=True)[1].shape == (16, 32)


def test_the_ellipsoid_has_the_radii_it_was_asked_for() -> None:
    head = ellipsoid_head((0.2, 0.4, 0.3), size=128)
    surface = torch.tensor([[0.2, 0, 0], [0, -0.4, 0], [0, 0, 0.3], [0.2 / 3**0.5, 0.4 / 3**0.5, -0.3 / 3**0.5]])
    assert torch.allclose(head.density(surface), torch.full((4,), head.surface_density), rtol=0.05)
    assert (head.density(surface * 0.9) > 240).all()
    assert (head.density(surface * 1.1) < 10).all()


def test_planes_and_decoder_must_fit() -> None:
    head = ellipsoid_head(size=8)
    with pytest.raises(ValueError, match="32 channels, the appearance planes have 16"):
        replace(head, appearance=TriPlane(torch.zeros(3, 16, 8, 8)))


def test_untrained_super_resolution_is_bicubic_upsampling() -> None:
    head = replace(ellipsoid_head(size=32), super_resolution=SuperResolution())
    with torch.no_grad():
        out = head.render(CAMERA, 64, upsample="super_resolution", features=True, normals=True)
        small = head.render(CAMERA, 16)
    bicubic = F.interpolate(small.rgb.permute(2, 0, 1)[None], scale_factor=4, mode="bicubic")[0].permute(1, 2, 0)
    cover = F.interpolate(small.alpha[None, None], scale_factor=4, mode="bicubic")[0, 0]
    inside = (out.alpha == 1) & ((cover - 1).abs() < 1e-6)
    assert inside.sum() > 100
    assert torch.allclose(out.rgb[inside], bicubic[inside].clamp(0, 1), atol=1e-5)
    assert (out.rgb <= out.alpha[..., None]).all()
    assert out.depth.shape == (64, 64)
    assert out.features is not None and out.features.shape == (16, 16, 32)
    assert out.normals is not None and out.normals.shape == (64, 64, 3)


def test_an_upsampled_outline_has_no_steps() -> None:
    head = replace(ellipsoid_head(size=64), super_resolution=SuperResolution())
    with torch.no_grad():
        truth = head.render(CAMERA, 128)
        smooth = head.render(CAMERA, 128, upsample="super_resolution")
        small = head.render(CAMERA, 32)
    steps = F.interpolate(small.alpha[None, None], scale_factor=4, mode="bicubic")[0, 0].clamp(0, 1)
    assert (smooth.alpha - truth.alpha).abs().mean() < 0.7 * (steps - truth.alpha).abs().mean()
    rim = (smooth.alpha > 0.3) & (truth.alpha > 0.9)
    straight = [x.rgb[rim] / x.alpha[rim][:, None] for x in (smooth, truth)]
    assert (straight[0] - straight[1]).abs().mean() < 0.03  # no dark or bright rim


def test_super_resolution_is_small_and_trains_every_weight() -> None:
    network = SuperResolution()
    assert 0.2e6 < sum(p.numel() for p in network.parameters()) < 0.4e6
    torch.nn.init.normal_(network.out.weight, std=0.1)
    out = network(torch.rand(2, 32, 8, 12))
    assert out.shape == (2, 3, 32, 48)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_super_resolution_that_is_not_there_is_an_error() -> None:
    head = ellipsoid_head(size=8)
    with pytest.raises(ValueError, match="no super-resolution"):
        head.render(CAMERA, upsample="super_resolution")
    with pytest.raises(ValueError, match="divisible by 4"):
        replace(head, super_resolution=SuperResolution()).render(CAMERA, 30, upsample="super_resolution")
    with pytest.raises(ValueError, match="'nearest'"):
        head.render(CAMERA, upsample="nearest")  # type: ignore[arg-type]
