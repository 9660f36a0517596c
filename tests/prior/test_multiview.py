"""Posed images to a head: what a folder may hold and what is refused, the hull, and a view that was left out of the fit."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from portrait_backend.camera_file import read_cameras, write_cameras
from portrait_backend.context import cpu_context
from portrait_backend.portrait.types import Portrait
from portrait_backend.prior import create_prior, multiview, prior_inputs
from portrait_backend.prior.multiview import fit_views, visual_hull
from portrait_backend.prior.posed_images import PosedImage, read_views
from portrait_backend.radiance.analytic import ellipsoid_head
from portrait_backend.radiance.cameras import Camera
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import PriorSettings
from tests.prior.noise_heads import assert_meshes

SIZE = 48
ANGLES = [(azimuth, elevation) for azimuth, elevation in zip(range(0, 360, 45), (0, 15, -15, 0, 15, -15, 0, 20), strict=True)]
HIDDEN = Camera.orbit(22, 8, SIZE)


def render(camera: Camera) -> np.ndarray:
    """The analytic head, straight rgba8."""
    with torch.no_grad():
        out = ellipsoid_head(depth=2, size=64).render(camera)
    rgb = (out.rgb / out.alpha.clamp_min(1e-3)[..., None]).clamp(0, 1)
    return (torch.cat([rgb, out.alpha[..., None]], -1) * 255).round().byte().numpy()


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return [render(Camera.orbit(azimuth, elevation, SIZE)) for azimuth, elevation in ANGLES]


def write_folder(folder: Path, pictures: list[np.ndarray]) -> Path:
    folder.mkdir()
    cameras = {f"v{k}": Camera.orbit(azimuth, elevation, SIZE) for k, (azimuth, elevation) in enumerate(ANGLES)}
    write_cameras(cameras, folder / "cameras.json")
    for k, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"v{k}.png")
    return folder


def write_sheet(folder: Path, pictures: list[np.ndarray], background: int | None = None) -> Path:
    folder.mkdir()
    sheet = np.concatenate([np.concatenate(pictures[row : row + 4], 1) for row in (0, 4)], 0)
    if background is not None:
        alpha = sheet[..., 3:] / 255
        sheet = (sheet[..., :3] * alpha + background * (1 - alpha)).round().astype(np.uint8)
    Image.fromarray(sheet).save(folder / "sheet.png")
    views = [{"azimuth": azimuth, "elevation": elevation} for azimuth, elevation in ANGLES]
    (folder / "turnaround.json").write_text(json.dumps({"image": "sheet.png", "columns": 4, "rows": 2, "views": views}))
    return folder


def test_a_folder_and_a_sheet_hold_the_same_views(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    folder, sheet = read_views(str(write_folder(tmp_path / "a", pictures))), read_views(str(write_sheet(tmp_path / "b", pictures)))
    assert len(folder) == len(sheet) == 8
    for one, other in zip(folder, sheet, strict=True):
        torch.testing.assert_close(one.camera.world_to_camera, other.camera.world_to_camera)
        assert torch.equal(one.rgb, other.rgb) and torch.equal(one.matte, other.matte)
    assert float((folder[0].rgb.amax(-1) - folder[0].matte).max()) <= 1e-6, "premultiplied"


def test_a_background_of_one_colour_is_keyed(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    clean, keyed = read_views(str(write_sheet(tmp_path / "a", pictures))), read_views(str(write_sheet(tmp_path / "b", pictures, 255)))
    for one, other in zip(clean, keyed, strict=True):
        assert float(((one.matte > 0.5) == (other.matte > 0.5)).float().mean()) > 0.98


def test_the_hull_holds_the_solid_and_little_more(pictures: list[np.ndarray], tmp_path: Path) -> None:
    hull = visual_hull(read_views(str(write_folder(tmp_path / "a", pictures))), 32) > 0.5
    axis = (torch.arange(32) + 0.5) / 32 - 0.5
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    head = ellipsoid_head(depth=2, size=64)
    solid = (head.density(torch.stack([x, y, z], -1).reshape(-1, 3)) > head.surface_density).view(32, 32, 32)
    assert float((hull & solid).sum() / solid.sum()) > 0.95 and float(solid.sum() / hull.sum()) > 0.7


def psnr(head_rgb: torch.Tensor, truth: torch.Tensor) -> float:
    return -10 * math.log10(float((head_rgb - truth).square().mean()))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small planes and few rays: the ellipsoid has no detail."""
    for name, value in {"SHAPE_SIZE": 32, "COLOUR_SIZE": 32, "GRID": 32, "RAYS": 512, "HULL_POINTS": 2048, "OUTSIDE_POINTS": 512}.items():
        monkeypatch.setattr(multiview, name, value)


def test_a_view_that_was_left_out_is_met(tmp_path: Path, pictures: list[np.ndarray], small: None) -> None:
    head = fit_views(read_views(str(write_folder(tmp_path / "a", pictures))), 300, cpu_context(0))
    truth = torch.from_numpy(render(HIDDEN)).float() / 255
    with torch.no_grad():
        out = head.render(HIDDEN)
    wanted = truth[..., :3] * truth[..., 3:] + 1 - truth[..., 3:]
    both = (out.alpha > 0.5) & (truth[..., 3] > 0.5)
    assert float(both.sum() / ((out.alpha > 0.5) | (truth[..., 3] > 0.5)).sum()) > 0.93
    assert psnr(out.rgb + 1 - out.alpha[..., None], wanted) > 22
    mean = wanted[truth[..., 3] > 0.5].mean(0)
    flat = truth[..., 3:] * mean + 1 - truth[..., 3:]
    assert psnr(out.rgb + 1 - out.alpha[..., None], wanted) > psnr(flat, wanted), "better than the right shape in one colour"


def test_the_provider_takes_the_photo_as_one_more_view(tmp_path: Path, pictures: list[np.ndarray], portrait: Portrait, small: None) -> None:
    folder = write_folder(tmp_path / "a", pictures)
    settings = PriorSettings(provider="multiview", views=str(folder), view_steps=42)
    head = create_prior("multiview").initialise(portrait, settings, cpu_context())
    assert head.meta["views"] == 9 and not head.geometry.planes.requires_grad
    assert_meshes(head, portrait)
    cameras = read_cameras(folder / "cameras.json") | {"photo": portrait.camera}
    write_cameras(cameras, folder / "cameras.json")
    Image.new("RGB", (64, 64)).save(folder / "photo.jpg")
    assert [view.name for view in read_views(str(folder))] == [f"v{k}" for k in range(8)], (
        "a photo without a matte is left to the job's own"
    )
    sums = prior_inputs(settings)
    assert len(sums) == 9 and {"views/cameras.json", "views/v0.png"} <= sums.keys()
    Image.fromarray(pictures[0][::-1].copy()).save(folder / "v0.png")
    assert prior_inputs(settings) != sums, "another picture is another job"


@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        ("no folder", "views-missing"),
        ("nothing named", "views-missing"),
        ("two pictures", "views-invalid"),
        ("busy background", "views-invalid"),
        ("no sheet", "views-invalid"),
        ("sheet elsewhere", "views-invalid"),
        ("broken json", "views-invalid"),
        ("no picture", "views-unreadable"),
        ("wrong shape", "views-invalid"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path, pictures: list[np.ndarray], trouble: str, code: str) -> None:
    folder = tmp_path / "a"
    if trouble in ("two pictures", "busy background", "no picture", "wrong shape"):
        write_folder(folder, pictures[:2] if trouble == "two pictures" else pictures)
    elif trouble in ("no sheet", "sheet elsewhere", "broken json"):
        write_sheet(folder, pictures)
    if trouble == "busy background":
        noise = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), np.uint8)
        Image.fromarray(noise).save(folder / "v3.png")
    elif trouble == "no picture":
        (folder / "v3.png").write_bytes(b"no picture")
    elif trouble == "wrong shape":
        Image.fromarray(pictures[0][:20]).save(folder / "v3.png")
    elif trouble == "no sheet":
        (folder / "sheet.png").unlink()
    elif trouble == "sheet elsewhere":
        (folder / "turnaround.json").write_text((folder / "turnaround.json").read_text().replace("sheet.png", "../sheet.png"))
    elif trouble == "broken json":
        (folder / "turnaround.json").write_text("{")
    with pytest.raises(PortraitDiffusionError) as caught:
        read_views("" if trouble == "nothing named" else str(folder))
    assert caught.value.code == code and caught.value.hint


def test_a_ball_of_posed_views_without_a_network_or_a_file(portrait: Portrait) -> None:
    """The portrait as a posed image has its own camera and premultiplied colours."""
    view = multiview.posed(portrait)
    assert isinstance(view, PosedImage) and view.camera == portrait.camera
    torch.testing.assert_close(view.rgb, portrait.rgba[..., :3] * portrait.rgba[..., 3:])
