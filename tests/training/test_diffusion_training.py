"""Training of codec, denoiser and phi on spheres: what they are shown, and that runs resume and their exports load."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from portrait_backend.diffusion.codec import starter_codec
from portrait_backend.diffusion.denoiser import starter_denoiser
from portrait_backend.diffusion.weights import load_codec, load_denoiser, save_codec, save_denoiser
from portrait_backend.radiance.analytic import ellipsoid_head
from portrait_backend.radiance.cameras import Camera
from portrait_backend.restoration.detail_unet import load_detail_unet
from portrait_backend.restoration.guide import DiffusionPrior
from portrait_backend.training.codec_trainer import CROP, CodecRecipe, train_codec
from portrait_backend.training.denoiser_trainer import LOW_NOISE, DenoiserRecipe, _mirrored, train_denoiser
from portrait_backend.training.head_dataset import EAR, camera_at, load_heads, part_pixels
from portrait_backend.training.head_views import HeadViews
from portrait_backend.training.phi_trainer import mirrored, train_phi, true_rays
from portrait_backend.training.textures import draw_look, noise_texture, paint
from portrait_backend.training.trainer import TrainOptions
from portrait_shared.errors import PortraitDiffusionError
from tests.training.sphere_data import RADIUS, write_spheres

SIZE = 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("balls")
    write_spheres(path, size=SIZE)
    return path


@pytest.fixture(scope="module")
def codec_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("codec") / "codec.safetensors"
    torch.manual_seed(0)
    save_codec(starter_codec(), path)
    return path


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_ball_has_the_same_normal_image_from_every_view(folder: Path) -> None:
    views = HeadViews(folder)
    assert len(views) == 2 and views.views == 3 and views.near.tolist() == [[True, True, False]] * 2
    images = [views.normals(0, v, views.rgba(0, v)[3:]) for v in range(3)]
    for image in images:
        torch.testing.assert_close(image[:, 60:68, 60:68].mean((1, 2)), torch.tensor([0.5, 0.5, 1.0]), atol=0.02, rtol=0)
        torch.testing.assert_close(image[:, 0, 0], torch.full((3,), 0.5))
        assert image[0, 64, 90] > 0.7 and image[1, 38, 64] > 0.7
        assert (image - images[0]).abs().mean() < 0.01


def test_mirroring_a_ball_changes_nothing(folder: Path) -> None:
    views = HeadViews(folder)
    image = views.normals(0, 0, views.rgba(0, 0)[3:])[None]
    mirrored = _mirrored(image, torch.tensor([True]), torch.ones(1, 1, 1, 1, dtype=torch.bool))
    assert (mirrored - image).abs().mean() < 0.01
    plain = _mirrored(image, torch.tensor([True]), torch.zeros(1, 1, 1, 1, dtype=torch.bool))
    assert (plain - image).abs().mean() > 0.03
    assert torch.equal(_mirrored(image, torch.tensor([False]), torch.ones(1, 1, 1, 1, dtype=torch.bool)), image)


def test_looks_and_textures_stay_images() -> None:
    rgb = torch.rand(6, 3, 32, 32, generator=generator())
    torch.testing.assert_close(draw_look(6, generator(), strength=0)(rgb), rgb.clamp_min(1e-3), atol=1e-5, rtol=1e-4)
    look = draw_look(6, generator())
    changed = look(rgb)
    assert changed.min() >= 0 and changed.max() <= 1 and (changed - rgb).abs().mean() > 0.05
    assert torch.equal(look(rgb), changed), "one look for all views of a sitter"
    assert torch.equal(paint(rgb, generator(), share=0), rgb)
    painted = paint(rgb, generator(), share=1)
    assert painted.min() >= 0 and painted.max() <= 1 and (painted != rgb).flatten(1).any(1).all()
    assert abs(float(noise_texture(4, 64, generator()).std()) - 1) < 0.1


def test_true_rays_meet_the_ball(folder: Path) -> None:
    data = load_heads(folder)
    rays = true_rays(data, 0, 500, generator())
    hit = rays["depth"] > 0
    assert 50 < int(hit.sum()) < 450
    points = (rays["origin"] + rays["direction"] * rays["depth"][:, None])[hit]
    assert (points.norm(dim=-1) - RADIUS).abs().max() < 1e-3
    assert torch.equal(rays["colour"][:, 3] > 0.5, hit)


def test_batches_have_what_the_losses_need(folder: Path, codec_file: Path) -> None:
    codec = CodecRecipe(TrainOptions(folder, folder)).draw(6, generator())
    assert codec["images"].shape == (6, 3, CROP, CROP) and codec["noise"].shape == (6, 4, 32, 32)
    for share, count, side in ((0.0, 4, SIZE), (1.0, 8, SIZE // 2)):
        batch = DenoiserRecipe(TrainOptions(folder, folder), codec_file, share).draw(4, generator())
        assert batch["images"].shape == (count, 3, side, side) and batch["noise"].shape == (count, 4, side // 4, side // 4)
        assert batch["reference"].shape == (count, 4, 128, 128)
        drawn = ((batch["t"] + 0.5) / 1000) ** (1 / LOW_NOISE)
        assert sorted((drawn * count).int().tolist()) == list(range(count)), "timesteps are stratified"
        assert set(batch["domains"]) == {"rgb", "normal"}


def test_small_views_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PortraitDiffusionError, match="no finished identities"):
        HeadViews(tmp_path)
    write_spheres(tmp_path, count=1, size=64)
    with pytest.raises(ValueError, match="at least 128 px"):
        CodecRecipe(TrainOptions(tmp_path, tmp_path)).draw(2, generator())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_codec_and_denoiser_training_resume_and_export(folder: Path, tmp_path: Path) -> None:
    for steps in (1, 2):
        options = TrainOptions(folder, tmp_path / "codec", steps=steps, batch=2, evaluate_every=1, save_every=1)
        state = torch.load(train_codec(options), weights_only=True)
        assert state["step"] == steps and (tmp_path / f"codec/samples_00000{steps}.png").exists()
    codec = load_codec(tmp_path / "codec/codec.safetensors")
    torch.testing.assert_close(codec.model.encoder.layers[0].weight, state["average"]["encoder.layers.0.weight"], atol=2e-3, rtol=1e-2)
    for steps in (1, 2):
        options = TrainOptions(folder, tmp_path / "denoiser", steps=steps, batch=2, evaluate_every=2, save_every=1)
        state = torch.load(train_denoiser(options, tmp_path / "codec/codec.safetensors", small_share=1.0), weights_only=True)
        assert state["step"] == steps
    denoiser = load_denoiser(tmp_path / "denoiser/denoiser.safetensors")
    torch.testing.assert_close(denoiser.unet.conv_in.weight, state["average"]["unet.conv_in.weight"], atol=2e-3, rtol=1e-2)
    assert (tmp_path / "denoiser/samples_000002.png").exists()


def test_a_mirrored_head_is_seen_mirrored() -> None:
    head = ellipsoid_head((0.3, 0.36, 0.3), channels=8, hidden=16, size=32)
    planes = head.geometry.planes.clone()
    planes[..., : planes.shape[4] // 2, :] *= 0.9  # two sides that differ
    head = head.with_planes(geometry=head.geometry.with_planes(planes))
    head = head.within(torch.rand(8, 8, 8, generator=generator()) < 0.8)
    one, other = head.render(Camera.orbit(35, 10, 48)), mirrored(head).render(Camera.orbit(-35, 10, 48))
    assert float((one.rgb - one.rgb.flip(1)).abs().mean()) > 0.01
    torch.testing.assert_close(other.rgb.flip(1), one.rgb, atol=0.02, rtol=0)


def test_some_rays_hit_the_ears_of_a_data_set_that_knows_them(folder: Path, tmp_path: Path) -> None:
    data = load_heads(folder, 2)
    assert [len(pixels) for pixels in part_pixels(folder, EAR)] == [0, 0]
    known = shutil.copytree(folder, tmp_path / "known")
    parts = np.zeros((SIZE, SIZE), np.uint8)
    parts[40, 60:70] = EAR
    for view in range(3):
        Image.fromarray(parts * (view == 2)).save(known / f"id000001/part_{view:03d}.png")
    ears = part_pixels(known, EAR)
    assert len(ears[0]) == 0 and ears[1][0].tolist() == [2, 40, 60] and len(ears[1]) == 10
    rays = true_rays(data, 1, 40, generator(), ears[1])
    local = ears[1][:, [2, 1]].float()
    camera = camera_at(data, 1, 2, SIZE)
    pixels, _ = camera.project(rays["origin"] + rays["direction"])
    nearest = torch.cdist(pixels, local + 0.5).amin(1)
    assert (nearest[:6] < 0.1).all() and (nearest[6:] > 0.1).any()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_phi_training_resumes_and_exports(folder: Path, codec_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portrait_backend.training.phi_trainer.FIT_STEPS", 1)
    save_denoiser(starter_denoiser(), tmp_path / "denoiser.safetensors")
    denoiser = load_denoiser(tmp_path / "denoiser.safetensors")
    prior = DiffusionPrior(load_codec(codec_file), {"rgb": denoiser, "normal": denoiser}, 64)
    for steps in (1, 2):
        options = TrainOptions(folder, tmp_path / "phi", steps=steps, batch=1, limit=1, evaluate_every=2, save_every=1)
        state = torch.load(train_phi(options, prior, heads=1), weights_only=True)
        assert state["step"] == steps
    assert float(state["network"]["out.weight"].abs().max()) > 0
    phi = load_detail_unet(tmp_path / "phi/detail_unet.safetensors")
    torch.testing.assert_close(phi.stem.weight, state["average"]["stem.weight"], atol=2e-3, rtol=1e-2)
    assert (tmp_path / "phi/samples_000002.png").exists()
    assert len(list((tmp_path / "phi/heads").glob("held-out-*.safetensors"))) == 2
    options = TrainOptions(folder, tmp_path / "on", steps=1, batch=1, limit=1, learning_rate=0.0)
    further = torch.load(train_phi(options, None, heads=1, start=tmp_path / "phi/detail_unet.safetensors"), weights_only=True)
    torch.testing.assert_close(further["network"]["out.weight"], phi.out.weight)
