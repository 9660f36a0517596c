"""Colours of the unseen against surfaces on which they are known, and the cleaned shape against solids."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from portrait_backend.painting.surface import ReferenceView, SurfacePoints, points_around, sample_rays, silhouette
from portrait_backend.portrait.types import Portrait
from portrait_backend.prior.clean_shape import HARDLY, clean_occupancy, grown
from portrait_backend.prior.skin_and_clothes import Kinds, above_collar, nape, skin_share
from portrait_backend.prior.unseen import beyond_edge, continued, hairness, shaded, unseen_colours, without_colour, wrapped
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.density_grid import DensityGrid
from portrait_backend.radiance.picture import PictureLattice


class Ball:
    """A solid ball, with a thin needle, mist beside it and a cavity if asked for."""

    half_extent, surface_density = 0.5, 125.0

    def __init__(self, radius: float = 0.3, faults: bool = False) -> None:
        self.radius, self.faults = radius, faults

    def density(self, points: torch.Tensor) -> torch.Tensor:
        distance = points.norm(dim=-1) - self.radius
        if self.faults:
            needle = torch.maximum((points[:, [0, 1]] - torch.tensor([0.0, 0.1])).norm(dim=-1) - 0.008, (points[:, 2] + 0.3).abs() - 0.15)
            distance = torch.minimum(torch.maximum(distance, 0.1 - points.norm(dim=-1)), needle)
        share = torch.sigmoid(-300 * distance)
        if self.faults:
            mist = (points - torch.tensor([0.0, 0.0, -0.4])).norm(dim=-1) < 0.06
            share = torch.where(mist, share.clamp_min(0.3), share)
        return 250 * share

    def decode(self, points: torch.Tensor, features: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        return self.density(points), torch.full((len(points), 3), 0.5)


@pytest.fixture(scope="module")
def ball_photo(portrait: Portrait) -> Portrait:
    """The drawn sitter's landmarks with the matte of the ball."""
    camera = Camera.orbit(0, 0, 512)
    alpha, _ = silhouette(Ball(), *camera.rays(), DensityGrid.build(Ball(), 96))
    return replace(portrait, rgba=torch.cat([portrait.rgba[..., :3], alpha.view(512, 512, 1)], -1), camera=camera)


def test_silhouette_and_depth_of_a_ball() -> None:
    origin, directions = Camera.orbit(0, 0, 64).rays()
    alpha, depth = silhouette(Ball(), origin, directions, DensityGrid.build(Ball(), 96))
    middle = 32 * 64 + 32
    assert alpha[middle] > 0.99 and float(depth[middle]) == pytest.approx(2.4, abs=0.01)
    assert alpha[0] == 0 and depth[0] == 0
    found, _ = sample_rays(Ball(), origin, directions, DensityGrid.build(Ball(), 96))
    torch.testing.assert_close(found.weight.sum(-1), alpha[found.index])


def test_the_photo_is_trusted_in_front_not_at_grazing_angles_and_not_behind(ball_photo: Portrait) -> None:
    lattice = PictureLattice.of(DensityGrid.build(Ball(), 96).refined(Ball()))
    reference = ReferenceView(ball_photo, lattice)
    points = 0.3 * torch.nn.functional.normalize(torch.tensor([[0.0, 0.0, 1.0], [0.99, 0.0, 0.14], [0.0, 0.0, -1.0]]), dim=-1)
    trust = reference.look_up(points, -points).trust
    assert trust[0] > 0.95 and trust[1] < 0.3 and trust[2] == 0
    around = points_around(reference, lattice)
    assert (around.position.norm(dim=-1) - 0.3).abs().max() < 0.02
    assert (around.trust[around.position[:, 2] < -0.05] == 0).all()


def surface_points(position: torch.Tensor, colour: torch.Tensor) -> SurfacePoints:
    return SurfacePoints(position, torch.zeros_like(position), colour, torch.ones(len(position)))


def test_a_difference_is_carried_on_and_fades() -> None:
    seen = torch.rand(500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.02, 0.2, 0.2])
    tint = torch.tensor([0.1, -0.05, 0.0])
    guess = torch.tensor([0.5, 0.5, 0.5])
    asked = torch.tensor([[0.03, 0.1, 0.1], [0.2, 0.1, 0.1], [2.0, 0.1, 0.1]])
    seen_points, seen_guess = surface_points(seen, (guess + tint).expand(500, 3)), guess.expand(500, 3)
    result = continued(seen_points, seen_guess, asked, guess.expand(3, 3), torch.Generator().manual_seed(0))
    share = (result - guess)[:, 0] / tint[0]
    assert share[0] > 0.95 and 0.4 < share[1] < 0.9 and share[2] < 1e-3
    none = surface_points(seen[:0], seen[:0])
    assert torch.equal(continued(none, seen[:0], asked, guess.expand(3, 3), torch.Generator()), guess.expand(3, 3))


def test_far_from_what_is_seen_a_border_between_two_tones_fades() -> None:
    """Above light, below dark: next to them the border is as sharp, farther off it is wide."""
    generator = torch.Generator().manual_seed(0)
    seen = torch.rand(4000, 3, generator=generator) * torch.tensor([0.1, 0.4, 0.1]) - torch.tensor([0.1, 0.2, 0.0])
    light = (seen[:, 1:2] > 0).float().expand(-1, 3)
    heights = torch.linspace(-0.2, 0.2, 201)

    def width(x: float) -> float:
        asked = torch.stack([torch.full_like(heights, x), heights, torch.full_like(heights, 0.05)], -1)
        guess = torch.full((201, 3), 0.5)
        tone = continued(surface_points(seen, light), torch.full((4000, 3), 0.5), asked, guess, torch.Generator().manual_seed(1))[:, 0]
        share = (tone - tone.min()) / (tone.max() - tone.min())
        return float(((share > 0.1) & (share < 0.9)).sum()) * 0.002

    assert width(0.005) < 0.03 < 0.08 < width(0.15)


def test_a_black_and_white_photo_makes_a_black_and_white_head(ball_photo: Portrait) -> None:
    grey = ball_photo.rgba[..., :3].mean(-1, keepdim=True).expand(-1, -1, 3)
    photo = replace(ball_photo, rgba=torch.cat([grey, ball_photo.rgba[..., 3:]], -1))
    assert without_colour(photo) and not without_colour(ball_photo)
    generator = torch.Generator().manual_seed(3)
    position = torch.nn.functional.normalize(torch.randn(400, 3, generator=generator), dim=-1) * 0.3
    guess = torch.rand(400, 3, generator=generator)
    seen = surface_points(position, torch.full((400, 3), 0.5))
    for portrait, most in ((photo, 1e-5), (ball_photo, 1.0)):
        made = unseen_colours(portrait, seen, guess, surface_points(position, guess), guess, torch.Generator().manual_seed(1))
        spread = float((made.amax(-1) - made.amin(-1)).max())
        assert spread <= most and (portrait is photo or spread > 0.1)


def test_stripes_of_a_shirt_run_around_the_body(portrait: Portrait) -> None:
    generator = torch.Generator().manual_seed(0)
    angle = torch.rand(4000, generator=generator) * torch.pi
    height = -0.4 + 0.1 * torch.rand(4000, generator=generator)
    front = torch.stack([0.2 * torch.cos(angle), height, 0.2 * torch.sin(angle) - 0.06], -1)
    stripe = (height > -0.35).float()[:, None] * torch.tensor([1.0, 0.0, 0.0]) + (height <= -0.35).float()[:, None] * torch.tensor(
        [0.0, 0.0, 1.0]
    )
    back = torch.tensor([[0.05, -0.32, -0.25], [-0.05, -0.38, -0.25], [0.0, 0.1, -0.3], [0.05, -0.32, -0.25]])
    grey, skin = torch.full((4, 3), 0.5), torch.tensor([0.8, 0.5, 0.4])
    cloth = torch.full((4000, 3), 0.4)
    guess = torch.stack([cloth[0], 0.7 * cloth[0], cloth[0], skin])  # darker behind, but cloth
    no_skin = Kinds(torch.zeros(4000), torch.tensor([0.0, 0.0, 0.0, 1.0]), nape(back))
    colours = wrapped(portrait, surface_points(front, stripe), cloth, back, guess, grey, generator, no_skin)
    assert colours[0, 0] > 0.8 and colours[1, 2] > 0.8
    torch.testing.assert_close(colours[2], grey[2], atol=1e-3, rtol=0)
    torch.testing.assert_close(colours[3], grey[3], atol=0.05, rtol=0, msg="the same place, where the prior says skin")


def test_a_nape_takes_no_colour_from_the_shirt_and_the_shirt_none_from_skin() -> None:
    generator = torch.Generator().manual_seed(0)
    skin, shirt = torch.tensor([0.6, 0.4, 0.3]), torch.tensor([0.9, 0.2, 0.5])
    guessed_skin, guessed_shirt = torch.tensor([0.5, 0.35, 0.28]), torch.tensor([0.5, 0.3, 0.32])
    height = -0.3 - 0.2 * torch.rand(2000, generator=generator)
    position = torch.stack([0.1 * torch.ones(2000), height, -0.1 + 0.1 * torch.rand(2000, generator=generator)], -1)
    cloth = height < -0.38
    colour, own = torch.where(cloth[:, None], shirt, skin), torch.where(cloth[:, None], guessed_shirt, guessed_skin)
    behind = torch.tensor([[0.05, -0.37, -0.13], [0.05, -0.39, -0.13]])
    guess = torch.stack([guessed_skin, guessed_shirt])
    kinds = Kinds(skin_share(colour, skin[None]), torch.tensor([1.0, 0.0]), nape(behind))
    assert kinds.seen[~cloth].min() > 0.99 and kinds.seen[cloth].max() < 0.01
    mixed, apart = (continued(surface_points(position, colour), own, behind, guess, generator, k) for k in (None, kinds))
    for k, wanted in enumerate((skin, shirt)):
        assert (apart[k] - wanted).norm() < 0.5 * (mixed[k] - wanted).norm(), f"{mixed[k]} and {apart[k]} for {wanted}"


def test_the_neck_above_the_collar_takes_no_colour_from_the_shirt() -> None:
    generator = torch.Generator().manual_seed(0)
    skin, shirt, own = torch.tensor([0.4, 0.25, 0.2]), torch.tensor([0.9, 0.2, 0.5]), torch.tensor([0.4, 0.25, 0.25])
    height = -0.3 - 0.2 * torch.rand(2000, generator=generator)
    position = torch.stack([0.12 * torch.ones(2000), height, 0.1 * torch.rand(2000, generator=generator)], -1)
    cloth = height < -0.35
    colour = torch.where(cloth[:, None], shirt, skin)
    asked = torch.tensor([[0.15, -0.3, 0.05], [0.15, -0.45, 0.05]])
    above = above_collar(asked, position[cloth])
    assert above.tolist() == [1, 0]
    assert above_collar(asked, position[:0]).tolist() == [0, 0], "no clothes, no collar"
    kinds = Kinds(skin_share(colour, skin[None]), torch.maximum(torch.tensor([0.5, 0.5]), above), torch.maximum(nape(asked), above))
    guess = own.expand(2, 3)
    neck, chest = continued(surface_points(position, colour), own.expand(2000, 3), asked, guess, generator, kinds)
    assert (neck - skin).norm() < 0.1 and (chest - shirt).norm() < 0.2


def test_far_from_the_photo_too_skin_takes_nothing_from_a_shirt() -> None:
    """Skin and shirt are seen in front, mixed in every neighbourhood; what is asked lies far behind."""
    skin, shirt = torch.tensor([0.4, 0.27, 0.2]), torch.tensor([0.9, 0.3, 0.5])
    count = 3000
    generator = torch.Generator().manual_seed(0)
    position = (torch.rand(count, 3, generator=generator) - 0.5) * torch.tensor([0.3, 0.1, 0.02]) + torch.tensor([0.0, -0.25, 0.1])
    is_skin = torch.arange(count) % 4 == 0
    colour = torch.where(is_skin[:, None], skin, shirt)
    asked = torch.tensor([[0.0, -0.2, -0.1]])
    kinds = Kinds(is_skin.float(), torch.ones(1), torch.ones(1))
    found = continued(surface_points(position, colour), torch.full((count, 3), 0.3), asked, torch.full((1, 3), 0.3), generator, kinds)
    assert float((found - 0.3 - (skin - 0.3) * 0.7).abs().max()) < 0.06
    whole = Kinds(is_skin.float(), torch.zeros(1), torch.ones(1))
    found = continued(surface_points(position, colour), torch.full((count, 3), 0.3), asked, torch.full((1, 3), 0.3), generator, whole)
    assert float((found - 0.3 - (shirt - 0.3) * 0.7).abs().max()) < 0.06


def test_below_the_photos_edge_the_bust_goes_on(portrait: Portrait) -> None:
    """The photo ends at row 440; below, the prior guesses green stripes."""
    valid = torch.ones(512, 512)
    valid[440:] = 0
    cut = replace(portrait, valid=valid)
    origin, directions = portrait.camera.rays()
    y, x = torch.meshgrid(torch.arange(360, 510, 3), torch.arange(190, 320, 3), indexing="ij")
    ray = directions.view(512, 512, 3)[y, x].reshape(-1, 3)
    position = origin + ray * ((0.1 - origin[2]) / ray[:, 2:])
    below = (y >= 440).reshape(-1)
    assert torch.equal(beyond_edge(cut, position), below)
    assert not beyond_edge(portrait, position).any()
    shirt = torch.tensor([0.2, 0.3, 0.7])
    guess = torch.where(below[:, None], torch.tensor([0.1, 0.9, 0.1]), shirt)
    seen = surface_points(position[~below], shirt.repeat(int((~below).sum()), 1))
    colours = unseen_colours(
        cut, seen, guess[~below], surface_points(position[below], guess[below]), guess[below], torch.Generator().manual_seed(0)
    )
    assert float((colours - shirt).abs().max()) < 0.05


def test_a_guess_of_skin_says_nothing_of_the_light_on_hair() -> None:
    hair, dark, skin = torch.tensor([0.4, 0.3, 0.2]), torch.tensor([0.2, 0.15, 0.1]), torch.tensor([0.8, 0.6, 0.5])
    guess = torch.stack([dark, 0.5 * dark, skin])
    as_bright, darker, over_skin = shaded(hair, guess, dark.repeat(50, 1), skin.repeat(50, 1))
    torch.testing.assert_close(as_bright, hair)
    torch.testing.assert_close(over_skin, hair)
    assert (darker < 0.7 * hair).all()
    assert (shaded(hair, guess, dark.repeat(50, 1))[2] > 1.5 * hair).all(), "taken for hair it would be bright"


def test_hair_below_the_nape_needs_long_hair_in_the_photo_and_the_guess() -> None:
    generator = torch.Generator().manual_seed(0)
    crown = torch.tensor([0.0, 0.3, -0.1]) + 0.02 * torch.randn(300, 3, generator=generator)
    low = torch.tensor([[0.0, -0.3, -0.2], [0.1, -0.3, -0.2]])
    hair, skin = torch.tensor([0.2, 0.1, 0.1]), torch.tensor([0.8, 0.6, 0.5])
    guess = torch.cat([hair.expand(300, 3), hair[None], skin[None]])
    position = torch.cat([crown, low])
    long_hair = torch.tensor([0.2, -0.42, 0.0]) + 0.01 * torch.randn(300, 3, generator=generator)
    assert hairness(position, guess, skin.repeat(300, 1), crown)[300:].tolist() == [0.0, 0.0]
    assert hairness(position, guess, skin.repeat(300, 1), long_hair)[300:].tolist() == [1.0, 0.0]


def _without_skin(photo: Portrait) -> Portrait:
    """Return the photo in colours of which no face is: the ball comes forward farther than a face."""
    noise = torch.rand(512, 512, 3, generator=torch.Generator().manual_seed(0))
    return replace(photo, rgba=torch.cat([noise, photo.rgba[..., 3:]], -1))


def test_needles_mist_and_cavities_are_decided(ball_photo: Portrait) -> None:
    """Of a ball with all three, the ball is left: solid, sharp, and cut at the photo's matte."""
    share = clean_occupancy(Ball(faults=True), _without_skin(ball_photo))
    axis = (torch.arange(128) + 0.5) / 128 - 0.5
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    distance = (x**2 + y**2 + z**2).sqrt() - 0.3
    assert share[distance > 0.03].max() < 0.2
    assert share[distance < -0.03].min() > 0.8
    assert ((share > 0.5) != (distance < 0)).float().mean() < 0.01


def test_a_lock_grows_where_the_matte_has_more(ball_photo: Portrait) -> None:
    small = Ball(0.25)
    axis = (torch.arange(64) + 0.5) / 64 - 0.5
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    points = torch.stack([x, y, z], -1).reshape(-1, 3)
    solid = ((x**2 + y**2 + z**2).sqrt() < small.radius).numpy()
    added = grown(solid, ball_photo, points, 1 / 64)
    radius = (x**2 + y**2 + z**2).sqrt().numpy()
    assert added.any() and not (added & solid).any()
    assert radius[added].max() < 0.35 and np.abs(z.numpy()[added]).max() < 0.2
    assert not grown(((x**2 + y**2 + z**2).sqrt() < 0.31).numpy(), ball_photo, points, 1 / 64).any()
    low = (y < -0.1).numpy()
    other = grown(solid, ball_photo, points, 1 / 64, low)
    assert (added & ~other & low).any() and not (other & low & (radius < 0.28) & (y.numpy() < -0.15)).any(), (
        "nothing grows from what is bare"
    )
    cloth = grown(solid, ball_photo, points, 1 / 64, cloth=solid)
    assert cloth.any() and radius[cloth].max() < small.radius + HARDLY + 1 / 64 < radius[added].max(), "clothes grow hardly"
