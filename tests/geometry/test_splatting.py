"""Point splatting against hand-made layouts, a naive loop, and PyTorch3D where it is installed."""

from __future__ import annotations

import pytest
import torch

from portrait_backend.geometry.splatting import Splats, has_pytorch3d, splat_points, world_radius_px


def cloud(count: int = 300, size: int = 24, seed: int = 0, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    pixels = torch.rand(batch, count, 2, generator=g) * (size + 6) - 3
    depth = 1 + torch.rand(batch, count, generator=g)
    return pixels, depth, torch.rand(batch, count, generator=g) < 0.9


def naive(pixels: torch.Tensor, depth: torch.Tensor, keep: torch.Tensor, size: int, radius: float, k: int) -> torch.Tensor:
    index = torch.full((len(pixels), size, size, k), -1)
    for b in range(len(pixels)):
        for y in range(size):
            for x in range(size):
                near = (pixels[b] - torch.tensor([x + 0.5, y + 0.5])).pow(2).sum(-1) < radius**2
                found = (near & keep[b]).nonzero()[:, 0]
                order = found[depth[b, found].argsort(stable=True)][:k]
                index[b, y, x, : len(order)] = order
    return index


@pytest.mark.parametrize(("radius", "k"), [(0.5, 1), (1.3, 3), (2.7, 4)])
def test_every_pixel_gets_the_nearest_points_in_order(radius: float, k: int) -> None:
    pixels, depth, keep = cloud()
    splats = splat_points(pixels, depth, keep, 24, 24, radius=radius, k=k, backend="torch")
    assert torch.equal(splats.index, naive(pixels, depth, keep, 24, radius, k))
    found = splats.index >= 0
    assert found.any() and (~found).any()
    assert torch.isinf(splats.depth[~found]).all() and (splats.weight[~found] == 0).all()
    assert (splats.depth.diff(dim=-1)[found[..., 1:]] >= 0).all()


def test_points_on_pixel_centres_come_back_exactly() -> None:
    y, x = torch.meshgrid(torch.arange(7) + 0.5, torch.arange(9) + 0.5, indexing="ij")
    pixels = torch.stack([x, y], -1).reshape(1, -1, 2)
    values = torch.randn(1, 63, 5)
    splats = splat_points(pixels, torch.ones(1, 63), torch.ones(1, 63, dtype=torch.bool), 7, 9, radius=1.0, k=4)
    for mode in ("nearest", "alpha"):
        assert torch.equal(splats.composite(values, mode), values.view(1, 7, 9, 5).permute(0, 3, 1, 2))


def test_each_point_may_have_its_own_radius_and_the_world_gives_it() -> None:
    pixels = torch.tensor([[[4.5, 4.5], [14.5, 4.5]]])
    depth = torch.tensor([[2.0, 4.0]])
    radius = world_radius_px(0.1, torch.tensor([60.0]), depth)
    torch.testing.assert_close(radius, torch.tensor([[3.0, 1.5]]))
    splats = splat_points(pixels, depth, torch.ones(1, 2, dtype=torch.bool), 9, 20, radius=radius)
    counts = [(splats.index == n).sum().item() for n in (0, 1)]
    assert counts == [25, 9], "discs of 3 and 1.5 px around a centre, the rim left out"


def test_alpha_lays_the_near_over_the_far_by_their_weights() -> None:
    pixels, depth = torch.tensor([[[0.5, 1.0], [0.5, 0.5]]]), torch.tensor([[1.0, 2.0]])
    splats = splat_points(pixels, depth, torch.ones(1, 2, dtype=torch.bool), 1, 1, radius=1.0, k=2)
    torch.testing.assert_close(splats.weight[0, 0, 0], torch.tensor([0.75, 1.0]))
    shown = splats.composite(torch.tensor([[[1.0], [0.0]]]), "alpha")
    torch.testing.assert_close(shown, torch.tensor([[[[0.75]]]]))


def test_features_and_positions_get_gradients() -> None:
    pixels, depth, keep = cloud(60, 12)
    pixels.requires_grad_()
    features = torch.randn(2, 60, 3, requires_grad=True)
    splat_points(pixels, depth, keep, 12, 12, radius=2.0, k=3).composite(features).pow(2).sum().backward()
    assert features.grad is not None and features.grad.abs().sum() > 0
    assert pixels.grad is not None and pixels.grad.abs().sum() > 0
    assert (features.grad[~keep] == 0).all()


def test_nothing_to_splat_leaves_everything_empty() -> None:
    pixels, depth, keep = cloud(10, 8)
    splats = splat_points(pixels, depth, torch.zeros_like(keep), 8, 8)
    assert not splats.covered.any()
    assert (splats.composite(torch.ones(2, 10, 3)) == 0).all()
    assert not splat_points(pixels, -depth, keep, 8, 8).covered.any(), "points behind the camera"


def test_bad_input_is_named() -> None:
    pixels, depth, keep = cloud(10, 8)
    with pytest.raises(ValueError, match=r"\(2, 10, 2\), \(2, 9\)"):
        splat_points(pixels, depth[:, :9], keep, 8, 8)
    with pytest.raises(ValueError, match=r"radius.*100"):
        splat_points(pixels, depth, keep, 8, 8, radius=100)
    with pytest.raises(ValueError, match="k must be at least 1"):
        splat_points(pixels, depth, keep, 8, 8, k=0)
    with pytest.raises(ValueError, match="'opengl'"):
        splat_points(pixels, depth, keep, 8, 8, backend="opengl")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'mean'"):
        splat_points(pixels, depth, keep, 8, 8).composite(torch.ones(2, 10, 3), "mean")  # type: ignore[arg-type]


@pytest.mark.skipif(not has_pytorch3d(), reason="PyTorch3D is not installed")
@pytest.mark.parametrize(("height", "width"), [(24, 24), (20, 28)])
def test_pytorch3d_finds_the_same_points(height: int, width: int) -> None:
    pixels, depth, keep = cloud()
    ours, theirs = (splat_points(pixels, depth, keep, height, width, radius=1.7, k=3, backend=b) for b in ("torch", "pytorch3d"))
    assert (ours.index == theirs.index).float().mean() > 0.999
    features = torch.rand(2, 300, 3)
    assert (ours.composite(features) - theirs.composite(features)).abs().mean() < 1e-4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_gpu_gives_the_same() -> None:
    here = cloud()
    ours: Splats = splat_points(*here, 24, 24, radius=1.7, k=3, backend="torch")
    there = splat_points(*(x.cuda() for x in here), 24, 24, radius=1.7, k=3, backend="torch")
    assert torch.equal(ours.index, there.index.cpu())
