"""Training of stage 3's branches on spheres: pairs, paint that is the same from everywhere, and a run that resumes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from portrait_backend.diffusion.codec import Codec, tiny_codec
from portrait_backend.diffusion.denoiser import Denoiser, tiny_denoiser
from portrait_backend.geometry.reprojection import reproject
from portrait_backend.refinement.weights import load_hybrid_priors
from portrait_backend.training import hybrid_priors_trainer as trainer
from portrait_backend.training.hybrid_priors_data import ViewPairs, draw_paint, solid_texture
from portrait_backend.training.hybrid_priors_trainer import HybridPriorsOptions, HybridPriorsRecipe, train_hybrid_priors
from portrait_backend.training.trainer import TrainOptions
from portrait_shared.errors import PortraitDiffusionError
from tests.geometry.spheres import view_of
from tests.training.sphere_data import RADIUS, write_spheres

SIZE = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spheres")
    write_spheres(path, size=SIZE)
    return path


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    def codec(_: object) -> Codec:
        return tiny_codec()

    def denoiser(_: object) -> Denoiser:
        return tiny_denoiser()

    monkeypatch.setattr(trainer, "load_codec", codec)
    monkeypatch.setattr(trainer, "load_denoiser", denoiser)


def test_pairs_are_neighbours_in_both_orders(folder: Path) -> None:
    pairs = ViewPairs(folder)
    assert sorted(map(tuple, pairs.pairs.tolist())) == [(0, 0, 1), (0, 1, 0), (1, 0, 1), (1, 1, 0)], "0 and 15 degrees, never 120"
    seen = pairs.seen(1, 1)
    points = (seen.camera.rays()[0] + seen.camera.rays()[1] * seen.depth.reshape(-1, 1))[seen.depth.reshape(-1) > 0]
    assert (points.norm(dim=-1) - RADIUS).abs().max() < 1e-3
    assert (seen.normals.reshape(-1, 3)[seen.depth.reshape(-1) > 0] * points / RADIUS).sum(-1).min() > 0.98
    with pytest.raises(PortraitDiffusionError, match="within 3 degrees"):
        ViewPairs(folder, largest=3)
    with pytest.raises(PortraitDiffusionError, match="none of the identities"):
        ViewPairs(folder, coarse=folder / "nothing")


def test_a_set_from_a_prior_provider_gives_the_depth(folder: Path, tmp_path: Path, tiny: None) -> None:
    write_spheres(tmp_path / "coarse", count=1, size=SIZE, radius=RADIUS - 0.03)
    options = TrainOptions(data=folder, out=tmp_path)
    recipe = HybridPriorsRecipe(options, HybridPriorsOptions(coarse=tmp_path / "coarse"))
    depths = set()
    for seed in range(6):
        pair = recipe._pair(recipe.views, [[0, 0, 1], [1, 0, 1]], torch.Generator().manual_seed(seed))
        middle = pair.target_surface.depth[:, SIZE // 2, SIZE // 2]
        depths |= {round(float(middle[0]), 2)}
        assert round(float(middle[1]), 2) == 2.37, "the other identity has the true one only"
    assert depths == {2.37, 2.40}, "both kinds are trained on"


def test_paint_is_the_same_place_for_place_in_every_view() -> None:
    from portrait_backend.radiance.cameras import Camera

    (driver, _), (target, _) = (view_of(Camera.orbit(a, 0, 128)) for a in (0, 25))
    plain = torch.full((1, 3, 128, 128), 0.5)
    brush = draw_paint(plain, torch.Generator().manual_seed(2), share=1.0)
    images = [brush(plain, v.points().view(v.normals.shape)) for v in (driver, target)]
    assert images[0].std() > 0.02
    warped, mask = reproject(images[0], driver, target)
    known = mask[0, 0] > 0
    error = (warped - images[1]).abs().mean(1)[0][known].mean()
    assert error < 0.25 * (images[1] - images[1][..., known].mean()).abs().mean(1)[0][known].mean()
    assert torch.equal(images[0], brush(plain, driver.points().view(driver.normals.shape)))


def test_solid_textures_are_normalised_and_differ_by_seed() -> None:
    points = torch.rand(2, 32, 32, 3) - 0.5
    one, again, other = (solid_texture(points, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    torch.testing.assert_close(one.std((1, 2, 3)), torch.ones(2))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_a_batch_holds_what_the_model_is_told(folder: Path, tmp_path: Path, tiny: None) -> None:
    recipe = HybridPriorsRecipe(TrainOptions(data=folder, out=tmp_path), HybridPriorsOptions(small_share=0))
    batch = recipe.draw(4, torch.Generator().manual_seed(0))
    pair = batch["pair"]
    assert pair.driver.shape == pair.target.shape == pair.coarse.shape == (4, 3, SIZE, SIZE)
    assert pair.reference.shape[:2] == (4, 4) and pair.angles.shape == (4, 2)
    assert batch["noise"].shape == (4, 4, SIZE // 4, SIZE // 4) and (batch["sigma"] <= 0.8).all()
    terms = recipe.module(**batch)
    terms["total"].backward()
    assert {"total", "known", "void"} <= set(terms)
    assert all(p.grad is None for p in recipe.denoiser.parameters())
    assert sum(float(p.grad.abs().sum()) for p in recipe.priors.zero.parameters() if p.grad is not None) > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_training_resumes_and_its_export_loads(folder: Path, tmp_path: Path, tiny: None) -> None:
    options = TrainOptions(data=folder, out=tmp_path, steps=2, batch=2, save_every=1, evaluate_every=2)
    checkpoint = train_hybrid_priors(options)
    first = torch.load(checkpoint, weights_only=True)
    assert first["step"] == 2 and list(tmp_path.glob("samples_*.png"))
    train_hybrid_priors(TrainOptions(data=folder, out=tmp_path, steps=4, batch=2, save_every=1, evaluate_every=4))
    second = torch.load(checkpoint, weights_only=True)
    assert second["step"] == 4
    assert any(not torch.equal(first["network"][k], second["network"][k]) for k in first["network"])
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [2, 4] and {"loss", "psnr", "psnr_without"} <= set(records[0]["validation"])
    model = load_hybrid_priors(tmp_path / "hybrid_priors.safetensors")
    assert torch.allclose(model.zero[0].weight, second["average"]["zero.0.weight"], atol=1e-4)
