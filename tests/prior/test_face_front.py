"""Nothing stands before bare skin."""

from __future__ import annotations

from dataclasses import replace

import torch

from portrait_backend.portrait.head_pose import load_landmark_model
from portrait_backend.portrait.parts import bare_face_pixels, hair_pixels
from portrait_backend.portrait.regions import InPhoto
from portrait_backend.portrait.types import Portrait
from portrait_backend.prior.face_front import BEFORE, before_face
from portrait_backend.radiance.cameras import Camera


def on_face(height: float) -> torch.Tensor:
    """Return the landmark of the face's middle (3,) that is nearest to a height (head units)."""
    marks = load_landmark_model().mean.float()
    middle = marks[marks[:, 0].abs() < 0.03]
    return middle[(middle[:, 1] - height).abs().argmin()]


def test_a_visor_before_the_bare_forehead_is_not_there(portrait: Portrait) -> None:
    """The drawn sitter's hair ends above the middle of the face: what stands before the skin below it is cut away, hair's volume stays."""
    bare = bare_face_pixels(portrait, hair_pixels(portrait))
    rows = bare[:, 256].nonzero()[:, 0]
    assert rows.min() >= 180 and rows.max() > 300, "below the cap"
    away = torch.tensor([0.0, 0.0, 1.0])
    cheek = on_face(-0.1)
    fringe = portrait.camera.project(cheek[None])[0][0]
    assert bare[int(fringe[1]), int(fringe[0])]
    before = torch.stack([cheek + (BEFORE + 0.02) * away, cheek + (BEFORE - 0.02) * away, cheek - 0.1 * away])
    assert before_face(portrait, hair_pixels(portrait), InPhoto.of(portrait, before)).tolist() == [True, False, False]
    hair = on_face(0.2)
    assert portrait.camera.project(hair[None])[0][0, 1] < 175, "in the cap"
    assert before_face(portrait, hair_pixels(portrait), InPhoto.of(portrait, (hair + 0.1 * away)[None])).tolist() == [False]


def test_skin_like_hair_is_not_bare(portrait: Portrait) -> None:
    grey = torch.full((512, 512, 3), 0.5)
    one_colour = replace(portrait, rgba=torch.cat([grey, portrait.rgba[..., 3:]], -1))
    everything = torch.ones(512, 512, dtype=torch.bool)
    assert not bare_face_pixels(one_colour, everything).any(), "hair as near to the skin's colour as skin itself"
    assert bare_face_pixels(one_colour, ~everything).any()


def test_of_a_turned_face_the_nearest_layer_counts(portrait: Portrait) -> None:
    """Seen from 40 degrees to the side the nose stands before the farther cheek: its own skin isn't before the face."""
    model, camera = load_landmark_model(), Camera.orbit(40, 0, 512)
    marks = model.mean.float()
    skin = torch.tensor([0.8, 0.6, 0.5]).expand(512, 512, 3)
    rgba = torch.cat([skin, torch.ones(512, 512, 1)], -1)
    turned = replace(portrait, rgba=rgba, camera=camera, yaw=40.0, landmarks=camera.project(marks)[0])
    nowhere = torch.zeros(512, 512, dtype=torch.bool)
    at_all = before_face(turned, nowhere, InPhoto.of(turned, marks))
    assert not at_all.any()
    nearer = marks + 0.06 * torch.nn.functional.normalize(camera.centre - marks, dim=1)
    assert before_face(turned, nowhere, InPhoto.of(turned, nearer)).float().mean() > 0.3


def test_a_fringe_gains_volume_upward(portrait: Portrait) -> None:
    """The fringe comes down to row 230. Just above its end hair stands hardly farther before the face than skin may; farther up more."""
    rgba = portrait.rgba.clone()
    rgba[:230, :, :3] = torch.tensor([0.3, 0.1, 0.05])
    fringed = replace(portrait, rgba=rgba)
    hair = hair_pixels(fringed)
    assert not bare_face_pixels(fringed, hair)[:230].any() and bare_face_pixels(fringed, hair)[240, 256]
    marks = load_landmark_model().mean.float()
    middle = marks[marks[:, 0].abs() < 0.03]
    rows = portrait.camera.project(middle)[0][:, 1]
    low, high = (middle[(rows - row).abs().argmin()] for row in (224, 180))
    out = torch.tensor([0.0, 0.0, 0.065])
    points = torch.stack([low + out, high + out, high + 2 * out])
    assert before_face(fringed, hair, InPhoto.of(fringed, points)).tolist() == [True, False, True]
