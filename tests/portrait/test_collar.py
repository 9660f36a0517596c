"""Clothes before the head: they are told from skin by hue, and nothing above the jaw takes their colour."""

from __future__ import annotations

from dataclasses import replace

import torch

from portrait_backend.portrait.collar import Collar, above_jaw, clothes_pixels
from portrait_backend.portrait.head_pose import load_landmark_model
from portrait_backend.portrait.parts import hair_pixels
from portrait_backend.portrait.types import Portrait
from portrait_backend.radiance.cameras import Camera
from tests.drawn_portraits import sitter as drawn_sitter

SKIN, SHIRT, HAIR = torch.tensor([0.8, 0.55, 0.42]), torch.tensor([0.15, 0.2, 0.5]), torch.tensor([0.2, 0.12, 0.08])


def sitter(collar: torch.Tensor = SHIRT) -> Portrait:
    """Head and neck of skin, a shirt below, its collar before the jaw on the image's right."""
    y, x = torch.meshgrid(torch.arange(512.0), torch.arange(512.0), indexing="ij")
    head = ((x - 256) / 125) ** 2 + ((y - 245) / 185) ** 2 < 1
    neck, shirt = ((x - 256).abs() < 75) & (y > 350), y > 470 - 0.25 * (x - 256).abs()
    rgb = SKIN.expand(512, 512, 3).clone()
    rgb[(y < 150)] = HAIR
    rgb[neck & (y > 400) & ~head] *= 0.4  # the chin's shadow
    standing = (x > 330) & (x < 380) & (y > 315)
    rgb[shirt] = SHIRT
    rgb[standing & ~head] = collar
    matte = (head | neck | shirt | standing).float()
    return drawn_sitter(rgb, matte)


def test_a_shirt_is_clothes_and_a_neck_in_shadow_is_skin() -> None:
    portrait = sitter()
    clothes = clothes_pixels(portrait, hair_pixels(portrait))
    assert clothes[500, 150] and clothes[500, 256] and clothes[365, 360], "shirt and collar"
    assert not clothes[430, 256] and not clothes[245, 256] and not clothes[100, 256], "neck, face and hair"
    grey = portrait.rgba[..., :3].mean(-1, keepdim=True).expand(512, 512, 3)
    without = replace(portrait, rgba=torch.cat([grey, portrait.rgba[..., 3:]], -1))
    assert not clothes_pixels(without, hair_pixels(without)).any(), "in black and white nothing can be told"


def test_what_lies_apart_from_the_shirt_is_not_clothes() -> None:
    portrait = sitter()
    rgba = portrait.rgba.clone()
    rgba[300:330, 130:150, :3] = SHIRT  # an earring
    rgba[300:330, 130:150, 3] = 1
    apart = replace(portrait, rgba=rgba)
    assert not clothes_pixels(apart, hair_pixels(apart))[315, 140]


def test_the_jaws_plane_parts_head_and_neck() -> None:
    portrait = sitter()
    marks = load_landmark_model().mean.float()
    assert above_jaw(portrait, marks[[152, 172, 397, 1, 10]]).min() == 1, "chin, jaw, nose and forehead"
    below = torch.tensor([[0.0, -0.38, 0.1], [0.1, -0.3, 0.0], [0.0, -0.3, -0.1]])
    assert above_jaw(portrait, below).max() == 0, "neck, its side and its back"


def test_a_collar_hides_the_jaw_but_not_the_neck() -> None:
    origin, directions = Camera.orbit(0, 0, 512).rays()
    places = directions.view(512, 512, 3)
    jaw = origin + places[365, 360] * ((0.03 - origin[2]) / places[365, 360][2])  # a place of the head behind the collar
    neck = origin + places[480, 360] * ((0.03 - origin[2]) / places[480, 360][2])
    points = torch.stack([jaw, neck])
    assert above_jaw(sitter(), points).tolist() == [1, 0]
    assert Collar(sitter()).hides(points).tolist() == [1, 0]
    assert Collar(sitter(collar=SKIN)).hides(points).tolist() == [0, 0]
