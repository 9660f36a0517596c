"""The matte's decisions on made-up scenes: pieces, gaps between strands, other people."""

from __future__ import annotations

import numpy as np

from portrait_backend.portrait.matte import face_hull, keep_face_piece, make_matte
from portrait_backend.portrait.spill import clear_hair, close_gaps

SIZE = 320


def disc(x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[0:SIZE, 0:SIZE]
    return np.hypot(columns - x, rows - y) < radius


def ring(x: float, y: float, radius: float) -> np.ndarray:
    """Landmarks (468, 2) on a circle."""
    angle = np.linspace(0, 2 * np.pi, 468)
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], 1)


def textured(colour: tuple[float, float, float]) -> np.ndarray:
    return np.asarray(colour) + np.random.default_rng(1).normal(0, 0.02, (SIZE, SIZE, 3))


def test_hull_and_piece() -> None:
    hull = face_hull(ring(160, 160, 40), (SIZE, SIZE))
    assert abs(hull.sum() - np.pi * 40**2) < 0.1 * np.pi * 40**2
    alpha = (disc(160, 160, 80) | disc(40, 40, 20)).astype(float)
    kept = keep_face_piece(alpha, hull)
    assert kept[40, 40] == 0 and np.array_equal(kept[120:200, 120:200], alpha[120:200, 120:200])


def test_gap_that_the_segmenter_filled_is_found_by_colour() -> None:
    head, gap = disc(160, 160, 100), disc(235, 160, 5)
    image = np.clip(np.where((head & ~gap)[..., None], textured((0.2, 0.12, 0.1)), textured((0.3, 0.8, 0.3))), 0, 1)
    matte = make_matte(image, np.ones((SIZE, SIZE)), head.astype(float), ring(160, 160, 40), [], np.random.default_rng(0))
    assert matte.alpha[160, 235] < 0.1 and matte.alpha[160, 220] > 0.95
    iou = ((matte.alpha > 0.5) & head & ~gap).sum() / ((matte.alpha > 0.5) | (head & ~gap)).sum()
    assert iou > 0.97
    edge = matte.alpha > 0.3
    assert (matte.foreground[edge][:, 1] < 0.35).all()  # no green in the hair


def test_hair_goes_on_over_a_gap_that_the_matte_has_filled() -> None:
    head, face, gap, shine = disc(160, 160, 100), disc(160, 160, 40), disc(235, 160, 4), disc(85, 160, 4)
    image = np.where((head & ~gap)[..., None], textured((0.2, 0.12, 0.1)), textured((0.3, 0.8, 0.3)))
    image = np.where(shine[..., None], textured((0.75, 0.7, 0.68)), image).clip(0, 1)
    background = ~disc(160, 160, 103)
    closed = close_gaps(image, head.astype(float), image, gap | shine | disc(160, 130, 4), background, face)
    assert np.abs(closed[gap] - (0.2, 0.12, 0.1)).max() < 0.1
    untouched = ~disc(235, 160, 8)  # bright hair is of the sitter's own hue, the face is never touched
    assert np.array_equal(closed[untouched], image[untouched])
    assert close_gaps(image, head.astype(float), image, shine, background, face) is image


def test_a_gap_deep_in_hair_is_closed_by_hair_alone() -> None:
    """90 px from the background; thin hair in its middle, which the matte doesn't count as solid, shows what is behind it as well."""
    head, gap, thin = disc(160, 160, 140), disc(215, 160, 10), disc(215, 160, 4)
    image = np.where((head & ~gap)[..., None], textured((0.2, 0.12, 0.1)), textured((0.3, 0.8, 0.3))).clip(0, 1)
    alpha = np.where(thin, 0.4, head)
    closed = close_gaps(image, alpha, image, gap & ~thin, ~disc(160, 160, 145), disc(110, 160, 30))
    assert np.abs(closed[gap] - (0.2, 0.12, 0.1)).max() < 0.12


def test_a_stripe_of_a_colour_that_the_background_does_not_have_is_no_gap() -> None:
    """Half way to the background's colour or nearer, and not beside the face."""
    head, face, far, near = disc(160, 160, 100), disc(160, 160, 40), disc(235, 160, 4), disc(207, 160, 3)
    image = np.where(head[..., None], textured((0.2, 0.12, 0.1)), textured((0.3, 0.8, 0.3))).clip(0, 1)

    def touched(colour: tuple[float, float, float], spot: np.ndarray) -> bool:
        painted = np.where(spot[..., None], textured(colour), image).clip(0, 1)
        return close_gaps(painted, head.astype(float), painted, spot, ~disc(160, 160, 103), face) is not painted

    assert touched((0.3, 0.8, 0.3), far) and not touched((0.9, 0.2, 0.8), far)
    assert not touched((0.3, 0.8, 0.3), near)


def test_landmarks_beyond_the_silhouette_do_not_make_the_background_the_sitter() -> None:
    """The face's outline reaches 4 px beyond a cheek that is the silhouette."""
    head = disc(160, 160, 60)
    image = np.clip(np.where(head[..., None], textured((0.7, 0.5, 0.4)), textured((0.2, 0.3, 0.6))), 0, 1)
    matte = make_matte(image, np.ones((SIZE, SIZE)), head.astype(float), ring(160, 160, 64), [], np.random.default_rng(0))
    assert matte.alpha[disc(160, 160, 64) & ~disc(160, 160, 62)].mean() < 0.1
    assert matte.alpha[disc(160, 160, 57)].min() > 0.95


def test_soft_and_wrong_border_of_the_segmenter_is_corrected() -> None:
    head = disc(160, 160, 100)
    image = np.clip(np.where(head[..., None], textured((0.7, 0.5, 0.4)), textured((0.2, 0.3, 0.6))), 0, 1)
    rows, columns = np.mgrid[0:SIZE, 0:SIZE]
    probability = np.clip((104 - np.hypot(columns - 160, rows - 160)) / 12 + 0.5, 0, 1)  # 4 px too large, 12 px soft
    matte = make_matte(image, np.ones((SIZE, SIZE)), probability, ring(160, 160, 40), [], np.random.default_rng(0))
    assert abs((matte.alpha > 0.5).sum() / head.sum() - 1) < 0.02


def test_outside_the_photo_is_empty() -> None:
    head = disc(160, 160, 120)
    valid = np.ones((SIZE, SIZE))
    valid[220:] = 0
    image = np.clip(np.where(head[..., None], textured((0.7, 0.5, 0.4)), textured((0.2, 0.3, 0.6))), 0, 1)
    matte = make_matte(image, valid, head.astype(float), ring(160, 140, 40), [], np.random.default_rng(0))
    assert (matte.alpha[220:] == 0).all() and matte.alpha[210, 160] > 0.95


def test_the_neighbour_is_dropped() -> None:
    sitter, other = disc(120, 160, 72), disc(252, 160, 64)
    image = np.clip(
        np.where(
            sitter[..., None], textured((0.7, 0.5, 0.4)), np.where(other[..., None], textured((0.4, 0.3, 0.25)), textured((0.2, 0.3, 0.6)))
        ),
        0,
        1,
    )
    person = (sitter | other).astype(float)
    matte = make_matte(image, np.ones((SIZE, SIZE)), person, ring(120, 160, 32), [ring(252, 160, 28)], np.random.default_rng(0))
    assert matte.alpha[other & ~disc(120, 160, 80)].mean() < 0.05 and matte.alpha[sitter].mean() > 0.95


def test_background_far_inside_thin_hair_is_cleared() -> None:
    """Dark hair over a green ground: its lower end is tinted throughout, its crown, far from the ground, is not."""
    image = np.full((512, 512, 3), (0.3, 0.7, 0.1))
    hair = np.zeros((512, 512), bool)
    hair[60:400, 100:412] = True
    own = np.array([0.12, 0.1, 0.09])
    foreground = np.where(hair[..., None], own, image)
    foreground[300:400, 100:412] = 0.75 * own + 0.25 * image[0, 0]
    skin = foreground.copy()
    cleared = clear_hair(foreground, image, hair, ~hair)

    def greenness(rgb: np.ndarray) -> np.ndarray:
        return rgb[..., 1] - (rgb[..., 0] + rgb[..., 2]) / 2

    edge, crown = np.s_[330:395, 105:130], np.s_[150:250, 200:300]
    assert greenness(cleared[edge]).max() < 0.35 * greenness(foreground[edge]).min()
    assert np.abs(cleared[crown] - own).max() < 0.01
    np.testing.assert_allclose(clear_hair(skin, image, np.zeros_like(hair), ~hair), skin)
    grey = np.full_like(image, 0.6)
    assert np.abs(clear_hair(foreground, grey, hair, ~hair) - foreground).max() < 0.01, "a grey ground has no hue to shine through"
