"""The photo fit on the shipped network and a portrait rendered from a known head."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from portrait_backend.context import Cancelled, Context
from portrait_backend.portrait.types import Portrait
from portrait_backend.prior.hair_colour import hair_share, inside_polygon, photo_hair_colour, towards_hair
from portrait_backend.prior.starter import StarterPrior, encoder_input, predict_head, starter_network
from portrait_backend.radiance.cameras import Camera
from portrait_shared.settings import PriorSettings


def context(seed: int = 0, cancel_after: int | None = None) -> Context:
    count = iter(range(10**6))
    stop = None if cancel_after is None else lambda: next(count) >= cancel_after
    return Context(torch.device("cpu"), torch.float32, torch.Generator().manual_seed(seed), None, stop)


def face_landmarks() -> torch.Tensor:
    from portrait_backend.portrait.head_pose import load_landmark_model

    return Camera.orbit(0, 0, 512).project(load_landmark_model().mean.float())[0]


@pytest.fixture(scope="module")
def portrait() -> Portrait:
    """A flat-coloured head shape: skin disc, darker hair cap."""
    y, x = torch.meshgrid(torch.arange(512.0), torch.arange(512.0), indexing="ij")
    head = (((x - 256) / 130) ** 2 + ((y - 250) / 190) ** 2 < 1).float()
    neck = ((x - 256).abs() < 70) & (y > 350)
    matte = torch.maximum(head, neck.float())
    colour = torch.tensor([0.8, 0.6, 0.5]).expand(512, 512, 3).clone()
    colour[:180] = torch.tensor([0.3, 0.1, 0.05])
    return Portrait(
        image=colour,
        rgba=torch.cat([colour, matte[..., None]], -1),
        valid=torch.ones(512, 512),
        landmarks=face_landmarks(),
        camera=Camera.orbit(0, 0, 512),
        coefficients=torch.zeros(25),
        yaw=0.0,
        pitch=0.0,
        roll=0.0,
        source="drawn",
        sha256="0" * 64,
    )


def reference_error(head: object, portrait: Portrait) -> tuple[float, float]:
    out = head.render(portrait.camera, 96)  # type: ignore[attr-defined]
    small = torch.nn.functional.interpolate(portrait.rgba.permute(2, 0, 1)[None], size=96, mode="area")[0].permute(1, 2, 0)
    solid = (small[..., 3] > 0.99) & (out.alpha > 0.9)
    colour = float((out.rgb - small[..., :3]).abs()[solid].mean())
    both, either = ((out.alpha > 0.5) & (small[..., 3] > 0.5)).sum(), ((out.alpha > 0.5) | (small[..., 3] > 0.5)).sum()
    return colour, float(both / either)


def test_the_encoder_input_is_grey_where_there_is_nobody(portrait: Portrait) -> None:
    x = encoder_input(portrait.rgba)
    assert x.shape == (1, 4, 128, 128)
    torch.testing.assert_close(x[0, :, 0, 0], torch.tensor([0.5, 0.5, 0.5, 0.0]))


def test_the_fit_brings_the_reference_view_to_the_photo(portrait: Portrait) -> None:
    with torch.no_grad():
        before = predict_head(starter_network(), portrait)
        colour_before, _ = reference_error(before, portrait)
    fitted = StarterPrior().initialise(portrait, PriorSettings(fit_steps=20), context())
    with torch.no_grad():
        colour, iou = reference_error(fitted, portrait)
    assert colour < 0.75 * colour_before
    assert iou > 0.9


def test_the_same_seed_gives_the_same_planes_and_another_does_not(portrait: Portrait) -> None:
    runs = [StarterPrior().initialise(portrait, PriorSettings(fit_steps=3), context(seed)) for seed in (1, 1, 2)]
    assert torch.equal(runs[0].geometry.planes, runs[1].geometry.planes) and torch.equal(
        runs[0].appearance.planes, runs[1].appearance.planes
    )
    assert not torch.equal(runs[0].appearance.planes, runs[2].appearance.planes)


def test_the_shape_stays_when_only_colour_is_fitted(portrait: Portrait) -> None:
    with torch.no_grad():
        before = predict_head(starter_network(), portrait)
    after = StarterPrior().initialise(portrait, PriorSettings(fit_steps=3, fit_shape=False), context())
    assert torch.equal(before.geometry.planes, after.geometry.planes)
    assert not torch.equal(before.appearance.planes, after.appearance.planes)


def test_cancel_stops_the_fit(portrait: Portrait) -> None:
    with pytest.raises(Cancelled):
        StarterPrior().initialise(portrait, PriorSettings(fit_steps=50), context(cancel_after=2))


def test_hair_colour_is_what_lies_above_the_face(portrait: Portrait) -> None:
    hair = photo_hair_colour(portrait)
    assert hair is not None
    torch.testing.assert_close(hair, torch.tensor([0.3, 0.1, 0.05]), atol=0.02, rtol=0)
    bald_and_cropped = replace(portrait, rgba=portrait.rgba * torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert photo_hair_colour(bald_and_cropped) is None


def test_a_bare_scalp_does_not_colour_the_hair(portrait: Portrait) -> None:
    colour = portrait.rgba.clone()
    colour[:120, :, :3] = torch.tensor([0.3, 0.1, 0.05])
    colour[120:180, :, :3] = torch.tensor([0.8, 0.6, 0.5])
    hair = photo_hair_colour(replace(portrait, rgba=colour))
    assert hair is not None
    torch.testing.assert_close(hair, torch.tensor([0.3, 0.1, 0.05]), atol=0.02, rtol=0)


def test_guessed_hair_gets_the_hue_of_the_photo_and_keeps_its_pattern() -> None:
    guess = torch.rand(500, 3, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.1
    hair = torch.tensor([0.3, 0.25, 0.2])
    painted = towards_hair(guess, torch.ones(500), hair)
    torch.testing.assert_close(painted.mean(0), hair, atol=0.01, rtol=0)
    torch.testing.assert_close(painted[:, 0] / painted[:, 1], torch.full((500,), 1.2), atol=1e-4, rtol=0)
    assert torch.corrcoef(torch.stack([guess.mean(1), painted[:, 0]]))[0, 1] > 0.99
    assert torch.equal(towards_hair(guess, torch.zeros(500), hair), guess)


def test_crown_and_back_are_hair_and_neck_and_ears_are_not() -> None:
    crown, back, nape, ear = torch.tensor([[0.0, 0.35, 0.0], [0.0, 0.1, -0.3], [0.0, -0.3, -0.2], [0.22, 0.0, 0.05]])
    assert hair_share(torch.stack([crown, back, nape, ear])).tolist() == [1.0, 1.0, 0.0, 0.0]


def test_inside_polygon_on_a_square() -> None:
    square = torch.tensor([[0.0, 0.0], [2.0, 0.0], [2.0, 2.0], [0.0, 2.0]])
    assert inside_polygon(torch.tensor([[1.0, 1.0], [3.0, 1.0], [-1.0, 1.0], [1.0, 2.5]]), square).tolist() == [True, False, False, False]
