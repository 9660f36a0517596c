"""Training of the prior on a data set whose geometry is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from portrait_backend.prior.lift import HALF, ProxySurface
from portrait_backend.prior.network import PriorConfig, PriorNetwork
from portrait_backend.prior.weights import load_prior, save_prior
from portrait_backend.radiance.cameras import Camera, mirror_cameras
from portrait_backend.training.augment import apply_appearance, degrade_input, draw_appearance
from portrait_backend.training.head_dataset import HeadDataset, load_heads, mirror_landmarks
from portrait_backend.training.prior_loss import LossWeights, Sampler, colour_error, inside
from portrait_backend.training.prior_trainer import PriorRecipe, export_prior, start_from, train_prior
from portrait_backend.training.proxy_surface import fit_proxy, surface_points
from portrait_backend.training.synthetic import EVALUATION_VIEWS, view_plan
from portrait_backend.training.trainer import TrainOptions, train
from tests.training.sphere_data import RADIUS, SIZE, write_spheres


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spheres")
    write_spheres(path)
    return path


@pytest.fixture(scope="module")
def data(folder: Path) -> HeadDataset:
    return load_heads(folder)


def test_the_data_set_keeps_depth_and_finds_the_input_views(data: HeadDataset) -> None:
    assert data.rgba.shape == (2, 3, SIZE, SIZE, 4)
    assert data.input_view.tolist() == [0, 1, 0, 1], "the view at 120 degrees is no input"
    points = surface_points(data, 0, step=2)
    assert len(points) > 1000
    assert (points.norm(dim=-1) - RADIUS).abs().max() < 5e-4


def test_the_pose_fit_of_the_inputs_is_that_of_the_cameras(data: HeadDataset) -> None:
    yaw = torch.rad2deg(data.fitted_angles[:, 0])
    torch.testing.assert_close(yaw, torch.tensor([0.0, 15.0, 0.0, 15.0]), atol=1.5, rtol=0)
    torch.testing.assert_close(data.similarity[:, 0, 0], torch.ones(4), atol=0.03, rtol=0)


def test_the_unit_is_the_landmarks_not_the_files(folder: Path, tmp_path: Path, data: HeadDataset) -> None:
    write_spheres(tmp_path, count=1, file_unit=0.5)
    other = load_heads(tmp_path)
    torch.testing.assert_close(other.cameras, data.cameras[:1])
    torch.testing.assert_close(surface_points(other, 0), surface_points(data, 0))


def test_mirrored_cameras_see_the_mirrored_head() -> None:
    camera, points = Camera.orbit(25, -10, 100), torch.randn(20, 3, generator=torch.Generator().manual_seed(0)) * 0.2
    twin = replace(camera, world_to_camera=mirror_cameras(camera.world_to_camera))
    pixels, z = camera.project(points)
    mirrored, mirrored_z = twin.project(points * torch.tensor([-1.0, 1.0, 1.0]))
    torch.testing.assert_close(mirrored, torch.stack([100 - pixels[:, 0], pixels[:, 1]], -1))
    torch.testing.assert_close(mirrored_z, z)
    torch.testing.assert_close(twin.world_to_camera, Camera.orbit(-25, -10, 100).world_to_camera, atol=1e-6, rtol=0)


def test_mirrored_inputs_are_the_heads_seen_in_a_mirror(folder: Path, data: HeadDataset) -> None:
    both = load_heads(folder, mirror=True)
    m = len(data.input_id)
    assert both.mirrored.tolist() == [False] * m + [True] * m
    middle, right = np.full((1, 468, 2), SIZE / 2), np.array([3.0, 0.0])
    np.testing.assert_allclose(mirror_landmarks(middle + right, SIZE), middle - right)
    yaw = torch.rad2deg(both.fitted_angles[:, 0])
    torch.testing.assert_close(yaw[m:], -yaw[:m], atol=2.0, rtol=0)
    assert yaw[m + 1] < -10
    sampler = Sampler(both, torch.Generator().manual_seed(0), LossWeights(rays=300))
    rays = sampler.rays(torch.tensor([m, m + 2]))
    hit = rays["hit"].bool()
    surface = rays["points"][3][hit].norm(dim=-1)
    assert hit.any() and (surface < RADIUS + 1e-3).all() and (surface > RADIUS - 0.03).all(), "mirrored spheres stay in place"
    neutral = torch.tensor([[1.0, 1, 1, 1, 1, 1, 0, 0, 0, 0]])
    calm = [Sampler(both, torch.Generator().manual_seed(5), LossWeights()).network_input(torch.tensor([r]), neutral) for r in (1, m + 1)]
    assert (calm[0][:, 3] - calm[1][:, 3].flip(-1)).abs().mean() < 0.05


def test_colours_are_learned_as_means_but_outliers_pull_no_harder() -> None:
    error = torch.tensor([0.05, 0.2, 0.9], requires_grad=True)
    colour_error(error, turn=0.2).sum().backward()
    torch.testing.assert_close(error.grad, torch.tensor([0.25, 1.0, 1.0]))


def test_a_start_takes_the_weights_that_fit(tmp_path: Path) -> None:
    old = PriorNetwork(PriorConfig(palette=2))
    save_prior(old.state_dict(), old.config, tmp_path / "old.safetensors")
    network = PriorNetwork(PriorConfig(palette=3))
    assert start_from(network, tmp_path / "old.safetensors") == ["palette.pick.bias", "palette.pick.weight", "palette.spread"]
    torch.testing.assert_close(network.mean_planes, old.mean_planes, atol=1e-3, rtol=1e-2)


def test_guided_points_are_free_space_before_and_solid_behind_the_surface(data: HeadDataset) -> None:
    rays = Sampler(data, torch.Generator().manual_seed(0), LossWeights(rays=400)).rays(torch.tensor([0, 2]))
    hit = rays["hit"].bool()
    distance = rays["points"].norm(dim=-1)
    assert hit.any() and (~hit).any()
    assert (distance[0][hit] > RADIUS).all() and (distance[1][hit] > RADIUS).all()
    behind = inside(rays["points"][4]) & hit
    assert (rays["target"][4][hit] == 1).all() and (rays["target"][:, ~hit] == 0).all()
    assert (distance[4][behind & (distance[4] < RADIUS)]).numel() > 0


def test_the_proxy_recovers_the_sphere(data: HeadDataset) -> None:
    proxy = ProxySurface(25, 32)
    fit_proxy(data, proxy)
    points, _ = proxy(torch.zeros(1, 25), 32)
    front = points[0, 0]
    near_axis = front[..., :2].norm(dim=-1) < 0.15
    assert (front[near_axis].norm(dim=-1) - RADIUS).abs().max() < 0.03
    assert float(points.abs().max()) <= HALF


def test_appearance_is_shared_and_bounded() -> None:
    generator = torch.Generator().manual_seed(3)
    a = draw_appearance(64, generator)
    colour, points = torch.rand(64, 10, 3, generator=generator), torch.randn(64, 10, 3, generator=generator)
    once, again = apply_appearance(colour, points, a), apply_appearance(colour[:, :5], points[:, :5], a)
    torch.testing.assert_close(once[:, :5], again)
    assert once.min() >= 0 and once.max() <= 1
    neutral = torch.tensor([[1.0, 1, 1, 1, 1, 1, 0, 0, 0, 0]]).expand(64, -1)
    torch.testing.assert_close(apply_appearance(colour, points, neutral), colour, atol=1e-6, rtol=0)


def test_the_background_of_a_degraded_input_is_grey() -> None:
    generator = torch.Generator().manual_seed(0)
    matte = torch.zeros(8, 1, 64, 64)
    matte[:, :, 16:48, 16:48] = 1
    out = degrade_input(torch.rand(8, 3, 64, 64, generator=generator), matte, generator)
    assert out.shape == (8, 4, 64, 64)
    torch.testing.assert_close(out[:, :3, :4, :4], torch.full((8, 3, 4, 4), 0.5))


def test_view_plans_cover_the_head_and_the_table() -> None:
    import numpy as np

    training = view_plan(np.random.default_rng(0), evaluation=False)
    assert len(training) == 9 and abs(training[0][0]) <= 20
    azimuths = sorted(a % 360 for a, _ in training[2:])
    assert max(np.diff([*azimuths, azimuths[0] + 360])) < 100
    assert view_plan(np.random.default_rng(0), evaluation=True)[1:7] == EVALUATION_VIEWS


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_decoder_that_is_kept_stays_while_the_rest_learns(folder: Path, tmp_path: Path) -> None:
    recipe = PriorRecipe(options := TrainOptions(data=folder, out=tmp_path, steps=1, batch=2), keep_decoder=True)
    before = {name: value.clone() for name, value in recipe.network.state_dict().items()}
    train(recipe, options)
    changed = {name.split(".")[0] for name, value in recipe.network.state_dict().items() if not torch.equal(value, before[name])}
    assert "decoder" not in changed and {"encoder", "mean_planes", "palette"} <= changed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_training_resumes_and_its_export_loads(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "prior"
    options = TrainOptions(data=folder, out=out, steps=2, batch=2, save_every=1)
    checkpoint = train_prior(options)
    first = torch.load(checkpoint, weights_only=True)
    assert first["step"] == 2
    assert train_prior(options) == checkpoint
    assert torch.load(checkpoint, weights_only=True)["step"] == 2, "a finished schedule is left alone"
    train_prior(TrainOptions(data=folder, out=out, steps=4, batch=2, save_every=1))
    second = torch.load(checkpoint, weights_only=True)
    assert second["step"] == 4
    assert not torch.equal(first["network"]["mean_planes"], second["network"]["mean_planes"])
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [2, 4]
    export_prior(checkpoint, tmp_path / "prior.safetensors", data="spheres")
    network = load_prior(tmp_path / "prior.safetensors")
    torch.testing.assert_close(network.mean_planes, second["average"]["mean_planes"], atol=2e-3, rtol=1e-2)
