"""Detail for the texture: grain of hair and skin as the photo's own, each only where it belongs, and shade in an ear's hollows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from portrait_backend.mesh.bake import INSIDE
from portrait_backend.portrait.regions import EAR_CENTRE
from portrait_backend.portrait.types import Portrait
from portrait_backend.prior.ear_shade import DEPTH, EarShade
from portrait_backend.prior.hair_colour import hair_share
from portrait_backend.prior.hair_grain import FILL, HairGrain
from portrait_backend.prior.hair_strands import RAMP, StrandStyle
from portrait_backend.prior.skin_grain import SkinGrain, measure_skin
from portrait_backend.prior.texture_field import TextureField, with_detail
from portrait_backend.radiance.analytic import ellipsoid_head
from portrait_backend.radiance.density_grid import DensityGrid
from portrait_backend.radiance.head import Head

SKIN = torch.tensor([0.8, 0.6, 0.5])


@pytest.fixture(scope="module")
def head() -> Head:
    return ellipsoid_head((0.27, 0.36, 0.3), channels=8, hidden=16, size=32)


def grained(portrait: Portrait, strength: float) -> Portrait:
    """The sitter with a different brightness in every pixel."""
    rgba = portrait.rgba.clone()
    rgba[..., :3] *= 1 + strength * torch.randn(512, 512, 1, generator=torch.Generator().manual_seed(0))
    return replace(portrait, rgba=rgba.clamp(0, 1))


def on_side(azimuths: Tensor, height: float) -> Tensor:
    """Points (N, 3) of the ellipsoid at a height; azimuth 0 is the face."""
    return torch.stack([0.27 * torch.sin(azimuths), height + 0 * azimuths, 0.3 * torch.cos(azimuths)], -1)


def test_hair_gets_the_photos_grain(portrait: Portrait, head: Head) -> None:
    fields = [with_detail(head, grained(portrait, 0.1), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    points = on_side(torch.pi + torch.linspace(-1, 1, 3000), 0.1)
    assert float(hair_share(points).min()) == 1
    one, same, other = (field.colour(points) for field in fields)
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert float((one / head.colour(points) - 1)[:, 0].std()) == pytest.approx(0.05, abs=0.03)
    torch.testing.assert_close(fields[0].density(points), head.density(points))


def grain_of(style: StrandStyle, long: tuple[Tensor, Tensor] | None = None) -> HairGrain:
    return HairGrain(style, torch.Generator().manual_seed(0), torch.device("cpu"), long=long)


def styled(*grain: float) -> StrandStyle:
    return StrandStyle(torch.ones(RAMP, 3), (1.0, 0.0, 0.0), 8.0, grain)


def test_each_band_of_hairs_grain_is_as_strong_as_asked_and_curls_are_tamed() -> None:
    points = on_side(torch.pi + torch.linspace(-1, 1, 3000), 0.1)
    for band in range(3):
        strengths = [0.05 * (k == band) for k in range(3)]
        change = grain_of(styled(*strengths)).factors(points, points) - 1
        assert float(change.std()) == pytest.approx(FILL[band] * 0.05, rel=0.25)
    spread = [float((grain_of(styled(x, x, x)).factors(points, points)).std()) for x in (0.09, 0.12, 0.24)]
    assert spread[0] < 0.99 * spread[1] and spread[1] == pytest.approx(spread[2], rel=1e-3)


def test_long_hair_has_grain_below_the_nape_and_the_face_has_none() -> None:
    black, skin = torch.tensor([0.1, 0.1, 0.1]), torch.tensor([0.8, 0.6, 0.5])
    low = on_side(torch.pi + torch.linspace(-1, 1, 500), -0.3)
    brow, shirt = on_side(torch.linspace(-0.5, 0.5, 500), 0.05), on_side(torch.pi + torch.linspace(-1, 1, 500), -0.42)
    style, both = styled(0.05, 0.05, 0.05), (black, skin)
    for points, colour, long, grained_at_all in (
        (low, black, both, True),
        (low, black, None, False),
        (low, skin, both, False),
        (brow, black, both, False),
        (shirt, black, both, False),
    ):
        change = grain_of(style, long).factors(points, colour.expand(500, 3)) - 1
        assert bool(change.std() > 0.03) == grained_at_all and (grained_at_all or not change.any())


def test_skin_gets_the_photos_grain_in_every_band(portrait: Portrait) -> None:
    """Pixels of one brightness each are fine grain; the same, blurred, is coarser; a flat face has none."""
    strong, weak, flat = (measure_skin(grained(portrait, strength)) for strength in (0.08, 0.04, 0.0))
    assert strong and weak and flat
    assert strong[0][0] == pytest.approx(2 * weak[0][0], rel=0.1)
    assert strong[0][0] > 2 * strong[0][1] > 4 * strong[0][2] and max(flat[0]) < 1e-3
    points = torch.rand(4000, 3, generator=torch.Generator().manual_seed(1)) * 0.2 + torch.tensor([0.0, -0.3, 0.0])
    for colour, share in ((SKIN, 1.0), (torch.tensor([0.1, 0.2, 0.8]), 0.0)):
        grain = SkinGrain(strong[0], strong[1], torch.Generator().manual_seed(0), torch.device("cpu"))
        change = grain.factors(points, colour.expand(4000, 3)) - 1
        wanted = share * 0.8 * float(torch.tensor(strong[0]).square().sum().sqrt())
        assert float(change.std()) == pytest.approx(wanted, rel=0.15, abs=1e-6)
        assert abs(float(change.mean())) < 0.1 * wanted + 1e-6


def test_hair_by_place_gets_no_skins_grain(portrait: Portrait) -> None:
    measured = measure_skin(grained(portrait, 0.08))
    assert measured
    grain = SkinGrain(*measured, torch.Generator().manual_seed(0), torch.device("cpu"))
    points = on_side(torch.pi + torch.linspace(-1, 1, 500), 0.1)
    assert torch.equal(grain.factors(points, SKIN.expand(500, 3)), torch.ones(500))


def test_an_ears_hollow_is_darker_than_its_rim_and_a_flat_side_stays(head: Head) -> None:
    """A cup at the ear's place, in a lattice that stands for the head's: inside it matter is all around."""
    assert DEPTH == INSIDE, "the shade knows how deep the texture's points lie"
    n, half = 96, head.half_extent
    at = ((torch.arange(n) + 0.5) / n * 2 - 1) * half
    z, y, x = torch.meshgrid(at, at, at, indexing="ij")
    away = ((x - 0.2) ** 2 + (y - EAR_CENTRE[1]) ** 2 + (z - EAR_CENTRE[2]) ** 2).sqrt()
    solid = (x < 0.2) & (away > 0.03)  # a wall with half a ball cut out
    cup = replace(head, _made={})
    grid = DensityGrid.from_values(torch.where(solid, 1e4, 0.0), half)
    object.__setattr__(cup, "density_grid", lambda: grid)
    shade = EarShade(cup, SKIN.repeat(100, 1))
    places = torch.tensor([[0.17 - 0.008, *EAR_CENTRE[1:]], [0.2 - 0.008, EAR_CENTRE[1] + 0.1, EAR_CENTRE[2]], [0.0, 0.1, 0.3]])
    hollow, flat, face = shade.factors(places, SKIN.expand(3, 3)).tolist()
    assert hollow < 0.8 and flat == pytest.approx(1, abs=0.1) and face == 1
    assert shade.factors(places[:1], torch.tensor([[0.1, 0.2, 0.8]])).item() == 1, "what hangs over an ear is not its skin"


def test_a_photo_that_shows_nothing_leaves_the_head_as_it_is(portrait: Portrait, head: Head) -> None:
    empty = replace(portrait, rgba=portrait.rgba * torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert with_detail(head, empty, torch.Generator()) is head
    field = with_detail(head, portrait, torch.Generator().manual_seed(0))
    assert isinstance(field, TextureField) and field.colour(torch.zeros(0, 3)).shape == (0, 3)
