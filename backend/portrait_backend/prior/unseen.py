"""Colours for what the photo does not show: the photo's own carry on, hair with strands, skin and clothes with the prior's shading.

Near the border of what the photo shows the colours go over into the photo's: the difference between photo and guess is
carried on from the nearest seen points of the same kind and fades with the distance.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from portrait_backend.painting.surface import SurfacePoints, smoothstep
from portrait_backend.portrait.collar import above_jaw
from portrait_backend.portrait.parts import LUMINANCE, body_pixels, hair_pixels
from portrait_backend.portrait.regions import InPhoto, face_outline
from portrait_backend.portrait.types import Portrait
from portrait_backend.prior.hair_colour import (
    BARE,
    LONG_HAIR,
    SHORT_HAIR,
    hair_likeness,
    hair_share,
    of_one_hue,
    photo_hair_colour,
    share_above,
)
from portrait_backend.prior.hair_strands import measure_strands, ragged, strand_factors
from portrait_backend.prior.skin_and_clothes import (
    ALIKE,
    BODY_LIGHT,
    DARK,
    LEAST,
    SKIN_DOUBT,
    Kinds,
    above_collar,
    behind,
    nape,
    skin_share,
)

REACH = 0.35
"""Distance (head units) over which the photo's colours fade into the guess."""
TEMPLES = 0.03
"""Height (head units) above which short hair may be beside and before the ears."""
ANCHORS, NEIGHBOURS = 2500, 12
"""Seen points that are looked at, and how many of them count for a point."""
TREE: dict[str, Any] = {"leafsize": 32, "balanced_tree": False, "compact_nodes": False}
"""Search tree split in the middle of space: with few anchors and many points to look up, half the time of scipy's own choice."""
FAR, WIDE = (0.03, 0.12), 120
"""Distance (head units) over which colours come from a wider neighbourhood, and how many anchors it has. With the nearest alone a border
between light and dark curls goes on as a straight edge as far as the surface does."""
FEWEST_AROUND = 0.05
"""Share of a wider neighbourhood from which skin, or what is not, counts in it."""
VOTE_REACH = 0.08
"""Distance (head units) over which seen hair or skin decides what its unseen surroundings are."""
FAR_VOTE = 0.2
"""Distance from which nothing is left of that."""
UNNOTICED = 1 / 512
"""Share of a colour that makes less than half a grey level."""
SPREAD = 0.03
"""Distances up to this count alike."""
SURE = 0.8
"""Trust from which a seen point is an anchor."""
SHADE = (0.5, 2.0)
"""Range of the brightness of unseen hair, as a multiple of the photo's."""
GREY, COLOURED = 0.04, 0.02
"""Difference between a pixel's channels up to which it is grey; a photo with fewer coloured pixels than this share is black and white."""
SEAM = 0.08
"""Distance from the middle (head units) over which neck and clothes go over from what is seen on one side to the other's."""
BODY_REACH = 0.05
"""Difference in height or distance from the neck's axis (head units) over which the colours of neck and clothes fade."""
NECK_AXIS, PLACE_WEIGHT = (0.0, -0.06), 0.2
"""x and z of the neck's middle, head units; weight of the place itself among the coordinates of neck and clothes: stripes run around."""


def unseen_colours(
    portrait: Portrait,
    seen: SurfacePoints,
    seen_guess: Tensor,
    points: SurfacePoints,
    guess: Tensor,
    generator: torch.Generator,
    covered: tuple[float, float] = BARE,
) -> Tensor:
    """Return colours (N, 3) for surface points that the photo hardly saw.

    seen: points of the photo's own view; seen_guess (M, 3), guess (N, 3): the prior's colours of both; covered: `ears.covered_ears`.
    """
    if without_colour(portrait):
        grey = guess.new_tensor(LUMINANCE)[:, None].expand(3, 3)
        guess, seen_guess = guess @ grey, seen_guess @ grey
    hair_mask = hair_pixels(portrait)
    in_photo, face_mask = InPhoto.of(portrait, seen.position), torch.from_numpy(face_outline(portrait))
    is_hair, is_body = (in_photo.within(mask) for mask in (hair_mask, body_pixels(portrait, hair_mask)))
    sure = seen.trust > SURE
    bare = sure & ~is_hair
    hair, anchors = photo_hair_colour(portrait, hair_mask), seen[sure & is_hair]
    share = torch.zeros(len(guess))
    if hair is not None:
        share = hairness(points.position, guess, seen_guess[bare], anchors.position, covered)
        share = voted(seen[sure], is_hair[sure], points.position, share, generator)
        share = ragged(share, points.position, generator)
    colours = guess.clone()
    some = (share < 1 - UNNOTICED).nonzero()[:, 0]
    in_face = in_photo.within(face_mask) & bare
    of_seen, of_points = skin_share(seen.colour, seen.colour[in_face]), skin_share(guess[some], seen_guess[in_face])
    above = above_collar(points.position[some], seen.position[sure & is_body & (of_seen < SKIN_DOUBT[0])])
    above = torch.maximum(above, behind(points.position[some]) * share_above(points.position[some], SHORT_HAIR))  # nor is the hairline
    above = torch.maximum(above, above_jaw(portrait, points.position[some]))
    kinds = Kinds(of_seen, torch.maximum(of_points, above), (nape(points.position[some]) + above).clamp_max(1))
    colours[some] = continued(seen[bare], seen_guess[bare], points.position[some], guess[some], generator, kinds.of(bare))
    body = sure & is_body
    colours[some] = wrapped(
        portrait, seen[body], seen_guess[body], points.position[some], guess[some], colours[some], generator, kinds.of(body)
    )
    cut = beyond_edge(portrait, points.position) & (share < 0.5)
    if body.any():
        plain = [seen.colour[body].median(0).values.expand(count, 3) for count in (int(body.sum()), int(cut.sum()))]
        colours[cut] = continued(seen[body], plain[0], points.position[cut], plain[1], generator)
    some = (share > UNNOTICED).nonzero()[:, 0]
    if hair is None or not len(some):
        return colours
    kept = of_one_hue(anchors.colour, hair)
    anchors, own = anchors[kept], seen_guess[sure & is_hair][kept]
    own_light, light = (shaded(hair, colour, own, seen_guess[bare]) for colour in (own, guess[some]))
    strands = continued(anchors, own_light, points.position[some], light, generator)
    style = measure_strands(portrait, hair_mask)
    if style is not None:
        strands = strands * strand_factors(points.position[some], style, generator)
    colours[some] += share[some, None] * (strands - colours[some])
    return colours.clamp(0, 1)


def beyond_edge(portrait: Portrait, position: Tensor) -> Tensor:
    """Return which points (N, 3) lie below the photo's lower edge, within its frame: (N,) bool.

    The prior saw only the edge's colours drawn out there; what the bust shows is a better guess at its clothes.
    """
    in_photo = InPhoto.of(portrait, position)
    return (in_photo.values(portrait.valid) < 0.5) & (in_photo.at.abs() < 1).all(-1) & (in_photo.at[:, 1] > 0)


def without_colour(portrait: Portrait) -> bool:
    """Whether the photo's foreground is all grey, as in black and white."""
    rgb = portrait.rgba[..., :3][portrait.matte > SURE]
    return bool(((rgb.amax(-1) - rgb.amin(-1)) > GREY).float().mean() < COLOURED) if len(rgb) else False


def shaded(hair: Tensor, guess: Tensor, seen_guess: Tensor, skin_guess: Tensor | None = None) -> Tensor:
    """Return the photo's hair colour (3,) as bright at every point as the prior's guess (N, 3) is beside its guess of the seen hair (M, 3).

    The prior knows how hair darkens to the nape and lightens on the crown; the hue is the photo's. Where it guesses skin, whose colours are
    skin_guess (K, 3), it doesn't know of lighter hair.
    """
    if not len(seen_guess):
        return hair.expand(len(guess), 3)
    weights = guess.new_tensor(LUMINANCE)
    usual = (seen_guess @ weights).median()
    light = ((guess @ weights + DARK) / (usual + DARK)).clamp(*SHADE)
    if skin_guess is not None and len(skin_guess):
        like_hair = hair_likeness(guess, seen_guess.median(0).values, skin_guess.median(0).values)
        light = torch.where(light > 1, 1 + like_hair * (light - 1), light)
    return hair * light[:, None]


def hairness(position: Tensor, guess: Tensor, skin_guess: Tensor, hair: Tensor, covered: tuple[float, float] = BARE) -> Tensor:
    """Return how surely points (N, 3) are hair: by place, and above the ears by the guess's colour, long hair by that down to its end.

    guess (N, 3); skin_guess (M, 3): the same guess where the photo shows anything but hair; hair (K, 3): points of seen hair;
    covered: as for `hair_share`.
    """
    lowest = float(hair[:, 1].quantile(0.02)) if len(hair) else SHORT_HAIR
    place = hair_share(position, covered)
    crown = (place > 0.99) & (position[:, 1] > 0.1)
    if int(crown.sum()) < 100 or len(skin_guess) < 100:
        return place
    if lowest > LONG_HAIR:
        lowest = TEMPLES
    like_hair = hair_likeness(guess, guess[crown].median(0).values, skin_guess.median(0).values)
    return torch.maximum(place, like_hair * share_above(position, lowest))


def continued(
    seen: SurfacePoints,
    seen_guess: Tensor,
    position: Tensor,
    guess: Tensor,
    generator: torch.Generator,
    kinds: Kinds | None = None,
) -> Tensor:
    """Return guess (N, 3) plus what the photo differs from it at the nearest seen points, fading over `REACH`.

    kinds: skin and the rest, which don't mix everywhere.
    """
    if len(seen_guess) < NEIGHBOURS:
        return guess
    pick = torch.randperm(len(seen_guess), generator=generator)[:ANCHORS]
    difference, own, at = (seen.colour - seen_guess)[pick], seen_guess[pick], seen.position[pick]
    distance, index = _nearest(at, position)
    mean, kin = _mean_of_kin(difference, own, distance, index, guess, None if kinds is None else kinds.of(pick))
    away = (distance[:, 0] > FAR[0]).nonzero()[:, 0]
    wide, places, kind = _wide(at, difference, own, None if kinds is None else kinds.seen[pick])
    those = None if kinds is None else Kinds(kind, kinds.points[away], kinds.strict[away])
    far, _ = _mean_of_kin(*wide, *_nearest(places, position[away]), guess[away], those)
    mean[away] += smoothstep(distance[away, 0], *FAR)[:, None] * (far - mean[away])
    return guess + (kin * torch.exp(-((distance[:, 0] / REACH) ** 2)))[:, None] * mean


def _wide(at: Tensor, difference: Tensor, own: Tensor, seen: Tensor | None) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """Let a few anchors of those at (M, 3) stand for all around: mean difference and own colour (N, 3), place (N, 3), share of skin (N,).

    seen (M,): the anchors' shares of skin. Skin and the rest around one of the few make two rows.
    """
    few = at[: max(NEIGHBOURS, len(at) * NEIGHBOURS // WIDE)]
    around = _nearest(at, few, count=min(WIDE, len(at)))[1]
    shares = [torch.ones_like(around, dtype=at.dtype)] if seen is None else [seen[around], 1 - seen[around]]
    rows = []
    for kind, share in zip((1.0, 0.0), shares, strict=False):
        there = share.mean(1) > FEWEST_AROUND
        means = [_weighted(values[around[there]], share[there]) for values in (difference, own)]
        rows.append((*means, few[there], torch.full((int(there.sum()),), kind)))
    joined = [torch.cat(parts) for parts in zip(*rows, strict=True)]
    return (joined[0], joined[1]), joined[2], joined[3]


def _mean_of_kin(
    difference: Tensor, own: Tensor, distance: Tensor, index: Tensor, guess: Tensor, kinds: Kinds | None
) -> tuple[Tensor, Tensor]:
    """Return the mean difference (N, 3) of the nearest anchors (N, K), by distance and likeness, and their kinship (N,)."""
    kin = torch.ones_like(distance) if kinds is None else kinds.agreement(index)
    return _weighted(difference[index], kin * (_likeness(own[index], guess) + LEAST) / (distance + SPREAD) ** 2), kin.amax(1)


def wrapped(
    portrait: Portrait,
    seen: SurfacePoints,
    seen_guess: Tensor,
    position: Tensor,
    guess: Tensor,
    colours: Tensor,
    generator: torch.Generator,
    kinds: Kinds,
) -> Tensor:
    """Return colours (N, 3) with those of neck, shoulders and clothes carried on around the body at their height from seen points.

    What the prior guesses to be something else, such as skin beside a collar, keeps its own; seen_guess (M, 3), guess (N, 3);
    kinds as for `continued`.
    """
    if len(seen.trust) < NEIGHBOURS:
        return colours
    pick = torch.randperm(len(seen.trust), generator=generator)[:ANCHORS]
    in_face = InPhoto.of(portrait, position).within(torch.from_numpy(face_outline(portrait))) & (position[:, 2] > 0)
    change, total = torch.zeros_like(colours), torch.full((len(colours), 1), LEAST)
    for side in (-1.0, 1.0):  # each by what is seen on its own side: a place behind is about as near to both, and lit like neither
        near = smoothstep(side * position[:, 0], -SEAM, SEAM)
        anchors, some = pick[side * seen.position[pick, 0] > -SEAM / 2], ((near > 0) & ~in_face).nonzero()[:, 0]
        if len(anchors) < NEIGHBOURS:
            continue
        distance, index = _nearest(_around_body(seen.position[anchors]), _around_body(position[some]))
        index = anchors[index]
        alike = _likeness(seen_guess[index], guess[some], BODY_LIGHT) * kinds.agreement(index, some)
        weight = (alike + LEAST) / (distance + SPREAD) ** 2
        off = (_weighted(_around_body(seen.position)[index][..., :2], weight) - _around_body(position[some])[:, :2]).norm(dim=-1)
        share = torch.exp(-((off / BODY_REACH) ** 2)) * alike.amax(1)
        change[some] += (near[some] * share)[:, None] * (_weighted(seen.colour[index], weight) - colours[some])
        total[some] += near[some, None]
    return colours + change / total


def _likeness(own: Tensor, guess: Tensor, light: float = 1.0) -> Tensor:
    """How much guessed colours (N, 3) are like those of their neighbours (N, K, 3): (N, K); `light`: how much brightness counts."""
    difference = own - guess[:, None]
    brightness = difference @ difference.new_tensor(LUMINANCE)
    return torch.exp(-(((difference - (1 - light) * brightness[..., None]).norm(dim=-1) / ALIKE) ** 2))


def _around_body(position: Tensor) -> Tensor:
    """Return coordinates (N, 5) whose distances go by height and distance from the neck's axis, and a little by place."""
    radius = (position[:, [0, 2]] - position.new_tensor(NECK_AXIS)).norm(dim=-1)
    return torch.cat([radius[:, None], position[:, 1:2], PLACE_WEIGHT * position], -1)


def voted(seen: SurfacePoints, is_hair: Tensor, position: Tensor, share: Tensor, generator: torch.Generator) -> Tensor:
    """Return the share of hair (N,) with what the nearest seen points are, close to them."""
    if len(is_hair) < NEIGHBOURS:
        return share
    pick = torch.randperm(len(is_hair), generator=generator)[:ANCHORS]
    distance, index = _nearest(seen.position[pick], position, FAR_VOTE)
    vote = is_hair[pick][index].float().mean(1)
    return share + (vote - share) * torch.exp(-((distance.mean(1) / VOTE_REACH) ** 2))


def _nearest(anchors: Tensor, position: Tensor, farthest: float = math.inf, count: int = NEIGHBOURS) -> tuple[Tensor, Tensor]:
    """Return distances and indices (N, K) of the nearest anchors (M, 3) of points (N, 3); infinite, with any index, beyond `farthest`."""
    tree = cKDTree(anchors.numpy(), **TREE)
    distance, index = tree.query(position.numpy(), count, distance_upper_bound=farthest, workers=torch.get_num_threads())
    return torch.from_numpy(distance).float(), torch.from_numpy(index).clamp_max(len(anchors) - 1)


def _weighted(values: Tensor, weight: Tensor) -> Tensor:
    """Mean over the neighbours: values (N, K, 3), weight (N, K) -> (N, 3)."""
    return (weight[..., None] * values).sum(1) / weight.sum(1, keepdim=True)
