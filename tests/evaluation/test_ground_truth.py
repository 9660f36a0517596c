"""A perfect result built from the ground truth scores perfect; the exact ball nearly so; a wrong one by as much as it is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from portrait_backend.evaluation.candidates import ViewImages
from portrait_backend.evaluation.ground_truth import SECTION, STRIP, score_identity, truths
from portrait_backend.evaluation.image_metrics import MAX_PSNR
from portrait_backend.evaluation.scores import by_view, table
from portrait_backend.radiance.cameras import METRES_PER_UNIT, Camera
from portrait_backend.radiance.renderer import RenderOutput
from portrait_backend.training.head_dataset import HeadDataset, finished_identities, load_heads
from portrait_shared.errors import PortraitDiffusionError
from tests.cli.fake_parts import RADIUS
from tests.evaluation.balls import VIEWS, PaintedBall, ball_mesh, write_balls


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("balls")
    write_balls(path)
    return path


@pytest.fixture(scope="module")
def data(folder: Path) -> HeadDataset:
    return load_heads(folder, input_views=(0,))


@pytest.fixture(scope="module")
def home(folder: Path) -> Path:
    (found,) = finished_identities(folder)
    return found


class Oracle:
    """Shows what the data set stores."""

    def __init__(self, data: HeadDataset, home: Path) -> None:
        self.truths = list(truths(data, 0, tuple(range(len(VIEWS))), home))

    def render(self, camera: Camera, size: int | None = None, *, normals: bool = False) -> RenderOutput:
        return next(t.view for t in self.truths if torch.equal(t.camera.world_to_camera, camera.world_to_camera))


def means(scores: list) -> dict[str, float | None]:
    (row,) = table(scores).values()
    return {name: m.value for name, m in row.items()}


def test_the_truth_itself_scores_perfect(data: HeadDataset, home: Path) -> None:
    scores, pictures = score_identity("id000000", "oracle", Oracle(data, home), data, 0, home, [])
    found = means(scores)
    assert found == pytest.approx(
        {"psnr": MAX_PSNR, "foreground_psnr": MAX_PSNR, "ssim": 1, "iou": 1, "depth_error": 0, "normal_error": 0, "chamfer": 0}, abs=1e-5
    )
    assert {s.section for s in scores} == {SECTION} and {s.view for s in scores} == {"front", "45", "90", "180", "all"}
    truth, result = np.split(pictures[STRIP], 2)
    assert np.array_equal(truth, result)


def test_the_exact_ball_differs_by_the_stored_steps_only(data: HeadDataset, home: Path) -> None:
    found = means(score_identity("id000000", "exact", PaintedBall(), data, 0, home, [])[0])
    assert found["iou"] == 1 and found["psnr"] > 55 and found["ssim"] > 0.999  # type: ignore[operator]
    assert found["depth_error"] < 0.06 and found["chamfer"] < 0.06 and found["normal_error"] < 0.4  # type: ignore[operator]


def test_a_larger_ball_is_off_by_its_radius(data: HeadDataset, home: Path) -> None:
    larger = ball_mesh(1.05 * RADIUS, lambda points: torch.zeros_like(points))
    found = means(score_identity("id000000", "larger", larger, data, 0, home, [])[0])
    shell = 0.05 * RADIUS * METRES_PER_UNIT * 1000
    assert found["chamfer"] == pytest.approx(shell, rel=0.1)
    along_z = (1.05**3 - (1.05**2 - 1) ** 1.5) * 2 / 3 - 2 / 3  # mean over the disc of sqrt(1.05^2 - r^2) - sqrt(1 - r^2), in radii
    assert found["depth_error"] == pytest.approx(along_z * RADIUS * METRES_PER_UNIT * 1000, rel=0.02)
    assert found["iou"] == pytest.approx(1 / 1.05**2, abs=0.01)


def test_figures_stand_by_angle(data: HeadDataset, home: Path) -> None:
    class DarkBehind(PaintedBall):
        def render(self, camera: Camera, size: int | None = None, normals: bool = False) -> RenderOutput:
            view = super().render(camera, size, normals)
            dark = float(camera.centre[2]) < -1
            return RenderOutput(view.rgb * (0.5 if dark else 1.0), view.alpha, view.depth, None, view.normals)

    scores, _ = score_identity("id000000", "dark", DarkBehind(), data, 0, home, [])
    row = by_view(scores, "foreground_psnr")["dark"]
    assert row["180"].value < 15 < 50 < row["front"].value  # type: ignore[operator]
    assert row["45"].count == 2 and row["180"].count == 1


def test_images_can_not_be_seen_from_elsewhere(data: HeadDataset, home: Path) -> None:
    with pytest.raises(PortraitDiffusionError, match="truth's cameras"):
        score_identity("id000000", "images", ViewImages({}), data, 0, home, [])
