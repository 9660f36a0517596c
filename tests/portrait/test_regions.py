"""The face's region in the photo and in space."""

from __future__ import annotations

import torch

from portrait_backend.portrait.head_pose import load_landmark_model
from portrait_backend.portrait.regions import detail_share, ear_share, face_outline, face_share, filled_polygon
from portrait_backend.portrait.types import Portrait
from portrait_backend.radiance.cameras import Camera


def test_a_polygon_is_filled() -> None:
    filled = filled_polygon(torch.tensor([[2.0, 2.0], [7.0, 2.0], [7.0, 7.0], [2.0, 7.0]]).numpy(), 10)
    assert filled[4, 4] and not filled[8, 8] and filled.sum() == 36


def test_the_face_is_in_front_inside_the_outline() -> None:
    camera = Camera.orbit(20, 0, 512)
    marks = camera.project(load_landmark_model().mean.float())[0]
    blank = torch.zeros(512, 512, 4)
    portrait = Portrait(blank[..., :3], blank, blank[..., 0], marks, camera, torch.zeros(25), 20.0, 0.0, 0.0, "drawn", "0" * 64)
    nose, crown, back, shoulder = load_landmark_model().mean[1].float(), [0.0, 0.45, 0.0], [0.0, 0.0, -0.3], [0.3, -0.45, 0.1]
    share = face_share(portrait, torch.stack([nose, *map(torch.tensor, (crown, back, shoulder))]))
    assert share[0] > 0.95
    assert share[1:].tolist() == [0.0, 0.0, 0.0]
    ear = torch.tensor([[0.21, -0.03, 0.0], [-0.21, -0.03, 0.0]])
    assert detail_share(portrait, torch.cat([nose[None], ear, torch.tensor([crown])])).tolist() == [float(share[0]), 1, 1, 0]
    assert face_outline(portrait)[tuple(marks[1].long().flip(0).tolist())]


def test_ears_are_at_both_sides_and_fade_out() -> None:
    far, between = torch.tensor([[0.0, 0.0, 0.0], [0.2, 0.2, 0.0], [0.2, 0.0, -0.2], [0.3, 0.0, 0.0]]), torch.tensor([[0.2, 0.075, 0.0]])
    assert ear_share(far).tolist() == [0, 0, 0, 0]
    assert 0.1 < float(ear_share(between)) < 0.9
