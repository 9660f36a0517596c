"""The texture against colours that are known everywhere: the photo where it saw, the field behind, nothing black."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from portrait_backend.context import Progress, cpu_context
from portrait_backend.mesh.bake import INSIDE, bake_texture, diffuse_offset, dilate
from portrait_backend.mesh.build import build_mesh, surface_of
from portrait_backend.mesh.export import glb_bytes
from portrait_backend.mesh.types import HeadMesh
from portrait_backend.mesh.views import ProjectedView, photo_view
from portrait_backend.radiance.cameras import METRES_PER_UNIT, Camera
from tests.mesh.conftest import SMALL
from tests.mesh.fakes import PHOTO_SIZE, TINT, HeadField, portrait_of

SIZE = SMALL.texture_size


def points_and_colours(mesh: HeadMesh, texture: np.ndarray | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return face centres (head units), their normals, and the texture there, bilinearly."""
    texture = mesh.texture if texture is None else texture
    corners = mesh.vertices[mesh.faces] / METRES_PER_UNIT
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    uv = torch.from_numpy(mesh.uv[mesh.faces].mean(1))
    grid = torch.stack([2 * uv[:, 0] - 1, 1 - 2 * uv[:, 1]], 1)[None, None]
    planes = torch.from_numpy(texture).permute(2, 0, 1)[None].float() / 255
    colours = torch.nn.functional.grid_sample(planes, grid, align_corners=False)[0, :, 0].T
    return torch.from_numpy(corners.mean(1)), torch.from_numpy(normals), colours


def test_metres_axes_and_size(head_mesh: HeadMesh) -> None:
    low, high = head_mesh.vertices.min(0), head_mesh.vertices.max(0)
    assert low[1] == pytest.approx(-0.5 * METRES_PER_UNIT)
    assert high[1] == pytest.approx(0.41 * METRES_PER_UNIT, rel=0.02)
    assert high[2] == pytest.approx(0.34 * METRES_PER_UNIT, rel=0.02)  # the nose points to +z
    assert np.allclose(np.linalg.norm(head_mesh.normals, axis=1), 1, atol=1e-5)
    assert 7800 <= len(head_mesh.faces) <= 8000


def test_photo_where_it_saw_the_head(head_mesh: HeadMesh) -> None:
    points, normals, colours = points_and_colours(head_mesh)
    seen = (normals[:, 2] > 0.75) & (points[:, 1] > -0.4) & ((points[:, 1] - 0.08).abs() < 0.25)
    error = (colours - HeadField().colour(points)).abs()[seen]
    assert int(seen.sum()) > 500
    assert error.mean() < 0.01
    assert error.quantile(0.99) < 0.05


def test_field_behind_and_nothing_of_the_photo(head_mesh: HeadMesh) -> None:
    """Far from the seam the colours are the field's own, tint included, read just below the surface."""
    points, normals, colours = points_and_colours(head_mesh)
    back = (points[:, 2] < -0.22) & (normals[:, 2] < -0.5)
    error = (colours - HeadField(tint=TINT).colour(points - INSIDE * normals)).abs()[back]
    assert int(back.sum()) > 500
    assert error.quantile(0.99) < 0.04


def test_offset_closes_the_seam(head_mesh: HeadMesh) -> None:
    """Where trust in the photo ends the tint is taken back, so that no step remains; measured on the skin of the sides."""
    points, normals, colours = points_and_colours(head_mesh)
    side = (
        (normals[:, 2] < 0.2)
        & (normals[:, 2] > 0.05)
        & ((points[:, 1] - 0.05).abs() < 0.1)
        & (points[:, 2] > 0)
        & (points[:, 0].abs() < 0.26)
    )
    plain = (HeadField(tint=TINT).colour(points) - HeadField().colour(points)).abs()[side].mean()
    assert int(side.sum()) > 20
    assert (colours - HeadField().colour(points)).abs()[side].mean() < 0.4 * plain


def test_no_background_and_no_black_texel(head_mesh: HeadMesh) -> None:
    texture = head_mesh.texture.astype(int)
    assert texture.sum(2).min() > 30
    green = (texture[..., 1] > 150) & (texture[..., 0] < 100) & (texture[..., 2] < 100)
    assert not green.any()


def test_occluded_skin_takes_nothing_from_the_occluder() -> None:
    """A red board before the left half of the face hides it in the photo: the texture under it comes from the field."""

    class Board(HeadField):
        def distance(self, points: torch.Tensor) -> torch.Tensor:
            board = torch.maximum(
                (points[:, 2] - 0.42).abs() - 0.012, torch.maximum((points[:, 0] - 0.12).abs() - 0.08, (points[:, 1] - 0.1).abs() - 0.08)
            )
            arm = torch.maximum(board.clamp_min(-1), torch.zeros(()))
            stalk = torch.maximum((points[:, 2] - 0.3).abs() - 0.12, (points[:, [0, 1]] - torch.tensor([0.19, 0.17])).norm(dim=-1) - 0.012)
            return torch.minimum(super().distance(points), torch.minimum(torch.where(arm > 0, arm, board), stalk))

        def colour(self, points: torch.Tensor) -> torch.Tensor:
            return torch.where(points[:, 2:] > 0.4, torch.tensor([0.95, 0.05, 0.05]), super().colour(points))

    field = Board(floater=False, cavity=False)
    mesh = build_mesh(field, portrait_of(field), replace(SMALL, faces=16000), cpu_context())
    points, normals, colours = points_and_colours(mesh)
    hidden = (points[:, 2] < 0.36) & (normals[:, 2] > 0.5) & ((points[:, 0] - 0.115).abs() < 0.06) & ((points[:, 1] - 0.09).abs() < 0.06)
    assert int(hidden.sum()) > 100
    error = (colours - field.colour(points)).abs()[hidden]
    assert error.max() < 0.12
    front = (points[:, 2] > 0.425) & (normals[:, 2] > 0.9)
    assert (colours[front, 1] < 0.3).float().mean() > 0.9


def test_turned_camera_moves_the_seen_side() -> None:
    field = HeadField(floater=False, cavity=False)
    portrait = portrait_of(field, Camera.orbit(35, 0, PHOTO_SIZE))
    mesh = build_mesh(HeadField(tint=TINT), portrait, SMALL, cpu_context())
    points, normals, colours = points_and_colours(mesh)
    direction = torch.nn.functional.normalize(portrait.camera.centre, dim=0)
    seen = ((normals @ direction) > 0.8) & (points[:, 1].abs() < 0.2)
    assert (colours - field.colour(points)).abs()[seen].mean() < 0.015


def test_views_fill_what_the_photo_did_not_see(head_mesh: HeadMesh) -> None:
    """A view from behind recolours the back, the photo keeps the front: priority decides, not order."""
    truth = HeadField(floater=False, cavity=False)
    rear = portrait_of(truth, Camera.orbit(180, 0, PHOTO_SIZE))
    back_view = ProjectedView(rear.rgba[..., :3], rear.matte, rear.valid, rear.camera)
    views = [back_view, photo_view(portrait_of(truth))]
    texture = bake_texture(surface_of(head_mesh), HeadField(tint=TINT), views, SIZE, cpu_context())
    points, normals, colours = points_and_colours(head_mesh, texture)
    back = (points[:, 2] < -0.2) & (normals[:, 2] < -0.8)
    assert (colours - truth.colour(points)).abs()[back].mean() < 0.015
    front = (normals[:, 2] > 0.8) & (points[:, 1].abs() < 0.3)
    before = points_and_colours(head_mesh)[2]
    assert (colours - before)[front].abs().max() < 0.02


def test_a_change_is_added_to_the_fields_own_detail(head_mesh: HeadMesh) -> None:
    """Coarse views say how much lighter the back is; the field's stripes, finer than a view's pixel, stay."""

    class Striped(HeadField):
        def colour(self, points: torch.Tensor) -> torch.Tensor:
            return super().colour(points) * 0.5 + 0.2 + 0.03 * torch.sin(points[:, 1:2] / 0.004)

    photo, camera = photo_view(portrait_of(HeadField(floater=False, cavity=False))), Camera.orbit(180, 0, 32)
    flat = torch.full((32, 32, 3), 0.5)
    change = torch.full((32, 32, 3), 0.2)
    lighter, covering = (ProjectedView(flat, torch.ones(32, 32), torch.ones(32, 32), camera, change=how) for how in (change, None))
    plain, relative, absolute = (
        points_and_colours(head_mesh, bake_texture(surface_of(head_mesh), Striped(), [photo, *more], SIZE, cpu_context()))
        for more in ((), (lighter,), (covering,))
    )
    back = (plain[0][:, 2] < -0.25) & (plain[1][:, 2] < -0.9) & (plain[0][:, 1] > 0)
    difference = (relative[2] - plain[2])[back]
    assert int(back.sum()) > 100
    assert float(difference.mean()) == pytest.approx(0.2, abs=0.02) and float(difference.std()) < 0.03
    assert float(absolute[2][back].std()) < 0.5 * float(relative[2][back].std())


def test_views_of_one_priority_are_of_one_kind(head_mesh: HeadMesh) -> None:
    maps = (torch.zeros(8, 8, 3), torch.ones(8, 8), torch.ones(8, 8), Camera.orbit(0, 0, 8))
    views = [ProjectedView(*maps), ProjectedView(*maps, change=torch.zeros(8, 8, 3))]
    with pytest.raises(ValueError, match="one priority"):
        bake_texture(surface_of(head_mesh), HeadField(), views, SIZE, cpu_context())
    with pytest.raises(ValueError, match="change"):
        ProjectedView(*maps, change=torch.zeros(4, 8, 3))


def test_retexturing_a_finished_mesh_gives_the_same_texture(head_mesh: HeadMesh) -> None:
    surface = surface_of(head_mesh)
    views = [photo_view(portrait_of(HeadField(floater=False, cavity=False)))]
    texture = bake_texture(surface, HeadField(tint=TINT), views, SIZE, cpu_context())
    assert np.abs(texture.astype(int) - head_mesh.texture).mean() < 0.1


def test_without_views_the_field_colours_everything(head_mesh: HeadMesh) -> None:
    texture = bake_texture(surface_of(head_mesh), HeadField(), [], SIZE, cpu_context())
    points, normals, colours = points_and_colours(head_mesh, texture)
    flat = (normals[:, 1].abs() < 0.7) & (points[:, 1] > -0.45)
    assert (colours - HeadField().colour(points - INSIDE * normals))[flat].abs().quantile(0.99) < 0.03


def test_offset_is_exact_where_known_and_fades_away() -> None:
    """On a long strip whose left end differs by 1: 1 there, exp(-x / reach) beyond."""
    n = 81
    x, y = np.meshgrid(np.linspace(0, 1, n), np.linspace(0, 0.05, 5), indexing="ij")
    vertices = np.stack([x, y, 0 * x], -1).reshape(-1, 3)
    grid = np.arange(n * 5).reshape(n, 5)
    a, b, c, d = grid[:-1, :-1].ravel(), grid[1:, :-1].ravel(), grid[1:, 1:].ravel(), grid[:-1, 1:].ravel()
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    weight = (vertices[:, 0] < 0.3).astype(float)
    difference = np.where(weight[:, None] > 0, np.ones((len(vertices), 3)), np.nan)
    offset = diffuse_offset(vertices, faces, difference, weight, np.zeros((len(vertices), 3)))
    row = offset.reshape(n, 5, 3)[:, 2, 0]
    assert row[5] == pytest.approx(1, abs=0.1)
    assert 0 < row[-1] < 0.12
    assert (np.diff(row[20:]) < 0).all()
    edge = np.where(vertices[:, :1] > 0.35, 0.9, 0.0) * np.ones(3)
    blocked = diffuse_offset(vertices, faces, difference, weight, edge).reshape(n, 5, 3)[:, 2, 0]
    assert blocked[30] < 0.5 * row[30]


def test_dilation_repeats_the_nearest_texel() -> None:
    texture = np.zeros((6, 6, 3), dtype=np.uint8)
    covered = np.zeros((6, 6), dtype=bool)
    texture[2, 2], texture[2, 4] = 50, 200
    covered[2, 2] = covered[2, 4] = True
    filled = dilate(texture, covered)
    assert (filled[:, :3] == 50).all()
    assert (filled[:, 4:] == 200).all()
    with pytest.raises(ValueError, match="no texel"):
        dilate(texture, np.zeros((6, 6), dtype=bool))


def test_same_input_gives_the_same_glb_and_progress_rises(head_mesh: HeadMesh) -> None:
    reports: list[Progress] = []
    context = replace(cpu_context(), on_progress=reports.append)
    again = build_mesh(HeadField(tint=TINT), portrait_of(HeadField(floater=False, cavity=False)), SMALL, context)
    assert glb_bytes(again) == glb_bytes(head_mesh)
    assert reports[-1].step == reports[-1].steps == 100
    assert reports[-1].metrics["faces"] == len(again.faces)
    assert len({r.step for r in reports}) > 8


def test_colours_that_are_not_finite_are_refused(head_mesh: HeadMesh) -> None:
    class Broken(HeadField):
        def colour(self, points: torch.Tensor) -> torch.Tensor:
            return torch.full_like(points, float("nan"))

    with pytest.raises(ValueError, match="not finite"):
        bake_texture(surface_of(head_mesh), Broken(), [], SIZE, cpu_context())


def test_view_must_fit_its_camera() -> None:
    with pytest.raises(ValueError, match="camera"):
        ProjectedView(torch.zeros(8, 8, 3), torch.zeros(8, 8), torch.zeros(8, 9), Camera.orbit(0, 0, 8))
