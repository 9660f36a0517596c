"""Which pixels are hair, what colour it has, and strands that look like the photo's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from portrait_backend.portrait.parts import body_pixels, hair_pixels
from portrait_backend.portrait.regions import face_outline
from portrait_backend.portrait.types import Portrait
from portrait_backend.prior.hair_colour import (
    hair_share,
    hangs_long,
    of_one_hue,
    photo_hair_colour,
    share_above,
)
from portrait_backend.prior.hair_strands import STRONGEST, along_flow, hair_flow, measure_strands, on_capsule, ragged, strand_factors
from portrait_backend.prior.unseen import hairness
from portrait_backend.radiance.cameras import Camera

HAIR, SKIN = torch.tensor([0.3, 0.1, 0.05]), torch.tensor([0.8, 0.6, 0.5])


def test_hair_is_the_cap_above_the_face(portrait: Portrait) -> None:
    hair = hair_pixels(portrait)
    drawn = (portrait.matte > 0.95) & (torch.arange(512)[:, None] < 180) & ~torch.from_numpy(face_outline(portrait))
    assert not (hair & ~drawn).any()
    assert hair.sum() > 0.9 * drawn.sum()
    colour = photo_hair_colour(portrait)
    assert colour is not None
    torch.testing.assert_close(colour, HAIR, atol=0.02, rtol=0)


def test_without_a_matte_there_is_no_hair_colour(portrait: Portrait) -> None:
    assert photo_hair_colour(replace(portrait, rgba=portrait.rgba * torch.tensor([1.0, 1.0, 1.0, 0.0]))) is None


def test_a_bare_scalp_does_not_colour_the_hair(portrait: Portrait) -> None:
    colour = portrait.rgba.clone()
    colour[100:180, :, :3] = SKIN
    hair = photo_hair_colour(replace(portrait, rgba=colour))
    assert hair is not None
    torch.testing.assert_close(hair, HAIR, atol=0.02, rtol=0)


def test_neck_and_clothes_are_body_and_the_face_is_not(portrait: Portrait) -> None:
    body = body_pixels(portrait, hair_pixels(portrait))
    assert body[480, 256] and not body[200, 256]
    assert not (body & torch.from_numpy(face_outline(portrait))).any()


def test_crown_and_back_are_hair_and_neck_and_ears_are_not() -> None:
    crown, back, nape, ear = torch.tensor([[0.0, 0.35, 0.0], [0.0, 0.1, -0.3], [0.0, -0.3, -0.2], [0.22, 0.0, 0.05]])
    points = torch.stack([crown, back, nape, ear])
    assert hair_share(points).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert share_above(points, -0.4).tolist() == [1.0, 1.0, 1.0, 1.0]
    assert share_above(points, 0.2).tolist() == [1.0, 0.0, 0.0, 0.0]


def test_long_hair_covers_ears_where_the_guess_has_its_colour() -> None:
    crown = torch.tensor([[0.0, 0.35, -0.1]]).expand(200, 3)
    hair, skin = torch.tensor([0.1, 0.08, 0.06]), torch.tensor([0.7, 0.5, 0.4])
    ears = torch.tensor([[0.22, -0.04, 0.05], [0.22, -0.04, 0.05]])
    position, guess = torch.cat([crown, ears]), torch.cat([hair.expand(200, 3), hair[None], skin[None]])
    hanging = torch.tensor([[0.2, -0.35, 0.0]]).expand(50, 3)
    short = torch.tensor([[0.2, 0.1, 0.0]]).expand(50, 3)
    assert hairness(position, guess, skin.repeat(200, 1), hanging)[-2:].tolist() == [1.0, 0.0]
    assert hairness(position, guess, skin.repeat(200, 1), short)[-2:].tolist() == [0.0, 0.0]


def test_hair_hangs_long_where_the_photo_shows_it_below_the_jaw(portrait: Portrait) -> None:
    hair = hair_pixels(portrait)
    assert not hangs_long(portrait, hair)
    hanging = hair.clone()
    hanging[420:460, 100:130] = True
    assert hangs_long(portrait, hanging)


def test_a_hairline_turns_by_strands_and_leaves_the_rest() -> None:
    """A fade down the back of the head: the strands of the turn are upright, narrow, and where they shall be on average."""
    across, down = torch.meshgrid(torch.linspace(-0.1, 0.1, 200), torch.linspace(0.0, -0.2, 200), indexing="ij")
    points = torch.stack([across, down, -0.3 * torch.ones_like(down)], -1).reshape(-1, 3)
    fade = ((points[:, 1] + 0.15) / 0.1).clamp(0, 1)
    made = ragged(fade, points, torch.Generator().manual_seed(0))
    assert torch.equal(made[(fade == 0) | (fade == 1)], fade[(fade == 0) | (fade == 1)])
    half = (fade > 0.45) & (fade < 0.55)
    assert float(made[half].mean()) == pytest.approx(0.5, abs=0.1) and float(made[half].std()) > 0.2
    picture = made.view(200, 200)[:, 75:125]  # columns of the back, at heights where it turns
    sideways, along = (picture[1:] - picture[:-1]).abs().mean(), (picture[:, 1:] - picture[:, :-1]).abs().mean()
    assert sideways > 1.5 * along


def test_short_hair_before_and_above_the_ears_is_where_the_guess_has_its_colour() -> None:
    crown = torch.tensor([[0.0, 0.35, -0.1]]).expand(200, 3)
    hair, skin = torch.tensor([0.1, 0.08, 0.06]), torch.tensor([0.7, 0.5, 0.4])
    temple, cheek = torch.tensor([[0.22, 0.1, 0.05]]), torch.tensor([[0.22, -0.05, 0.05]])
    assert float(hair_share(temple)) < 0.5
    short = torch.tensor([[0.2, 0.1, 0.0]]).expand(50, 3)
    for place, colour, wanted in ((temple, hair, 1.0), (temple, skin, float(hair_share(temple))), (cheek, hair, 0.0)):
        share = hairness(torch.cat([crown, place]), torch.cat([hair.expand(200, 3), colour[None]]), skin.repeat(200, 1), short)
        assert float(share[-1]) == pytest.approx(wanted)


def test_what_shines_through_between_strands_is_of_another_hue() -> None:
    shades = HAIR * torch.linspace(0.5, 1.5, 9)[:, None]
    green = torch.tensor([[0.3, 0.4, 0.1], [0.5, 0.6, 0.2]])
    assert of_one_hue(torch.cat([shades, green]), HAIR).tolist() == [True] * 9 + [False] * 2
    assert of_one_hue(torch.empty(0, 3), HAIR).tolist() == []


def striped(portrait: Portrait, period: float, contrast: float) -> Portrait:
    """Vertical strands of hair colour times 1 +- contrast."""
    rgba = portrait.rgba.clone()
    wave = 1 + contrast * torch.sin(torch.arange(512.0) * 2 * torch.pi / period)
    rgba[:180, :, :3] = HAIR * wave[None, :, None]
    return replace(portrait, rgba=rgba)


def test_the_style_follows_contrast_fineness_and_direction_of_the_photo(portrait: Portrait) -> None:
    hair = hair_pixels(portrait)
    strong, weak = (measure_strands(striped(portrait, 12, c), hair) for c in (0.3, 0.1))
    coarse = measure_strands(striped(portrait, 36, 0.3), hair)
    assert strong and weak and coarse
    range_strong, range_weak = (float((style.ramp[-1] - style.ramp[0]).mean()) for style in (strong, weak))
    assert range_strong == pytest.approx(3 * range_weak, rel=0.1)
    assert strong.grain[0] > 2 * coarse.grain[0]
    assert strong.bands[0] > coarse.bands[0] and strong.bands[2] < coarse.bands[2]
    rgba = portrait.rgba.clone()
    rgba[..., :3] *= 1 + 0.2 * torch.randn(512, 512, 1, generator=torch.Generator().manual_seed(0))
    curly = measure_strands(replace(portrait, rgba=rgba.clamp(0, 1)), hair)
    assert curly and curly.length < 0.7 * strong.length
    assert measure_strands(portrait, torch.zeros(512, 512, dtype=torch.bool)) is None


def test_light_and_shadow_of_curls_do_not_become_stripes_from_black_to_white(portrait: Portrait) -> None:
    hair = hair_pixels(portrait)
    strong, hard = (measure_strands(striped(portrait, 24, contrast), hair) for contrast in (0.35, 0.95))
    assert strong and hard
    spread = [float(style.ramp.mean(-1).log().std()) for style in (strong, hard)]
    assert 0.2 < spread[0] < STRONGEST and spread[1] == pytest.approx(STRONGEST, rel=0.03)
    assert hard.ramp.mean(0).tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    assert (hard.ramp.mean(-1).diff() >= 0).all()


def test_strands_have_the_ramps_colours_and_run_along_the_flow(portrait: Portrait) -> None:
    style = measure_strands(striped(portrait, 12, 0.3), hair_pixels(portrait))
    assert style
    start = on_capsule(torch.randn(4000, 3, generator=torch.Generator().manual_seed(1)) * 0.3)
    flow = hair_flow(start)
    across = torch.linalg.cross(flow, torch.nn.functional.normalize(start - on_capsule(start) + start, dim=-1))
    places = [start, on_capsule(start + 0.02 * flow), on_capsule(start + 0.02 * across)]
    factors = strand_factors(torch.cat(places), style, torch.Generator().manual_seed(0)).view(3, 4000, 3)
    assert float(factors.mean()) == pytest.approx(1, abs=0.05)
    assert factors.min() >= style.ramp.min() and factors.max() <= style.ramp.max()
    here, along, beside = factors[..., 0]
    assert torch.corrcoef(torch.stack([here, along]))[0, 1] > torch.corrcoef(torch.stack([here, beside]))[0, 1] + 0.3


def test_flow_is_tangent_leaves_the_crown_and_falls() -> None:
    points = on_capsule(torch.randn(2000, 3, generator=torch.Generator().manual_seed(0)) * 0.3)
    flow = hair_flow(points)
    torch.testing.assert_close(flow.norm(dim=-1), torch.ones(2000))
    low = points[:, 1] < -0.05
    torch.testing.assert_close(flow[low], torch.tensor([0.0, -1.0, 0.0]).expand(int(low.sum()), 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(on_capsule(points), points, atol=1e-5, rtol=0)


def test_averaging_along_a_constant_leaves_it() -> None:
    points = on_capsule(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(along_flow(points, torch.full((8, 8, 8), 2.0), 0.01, 0.1), torch.full((50,), 2.0))


def test_the_kernel_follows_the_same_lines_as_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    points, noise = torch.randn(1000, 3, generator=generator) * 0.3, torch.randn(12, 12, 12, generator=generator)
    fast, slow = along_flow(points, noise, 0.02, 0.2), along_flow(points.double(), noise.double(), 0.02, 0.2)  # the kernel is for float32
    assert slow.dtype == torch.float64 and slow.std() > 0.05
    torch.testing.assert_close(fast.double(), slow, atol=2e-3, rtol=0)


def test_the_pattern_is_seeded(portrait: Portrait) -> None:
    style = measure_strands(striped(portrait, 12, 0.3), hair_pixels(portrait))
    assert style
    points = Camera.orbit(0, 0, 64).rays()[1]
    one, same, other = (strand_factors(points, style, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
