"""Matting against mixtures whose alpha and colours are known."""

from __future__ import annotations

import numpy as np

from portrait_backend.portrait.closed_form import estimate_foreground, matting_laplacian, solve_alpha
from portrait_backend.portrait.spill import remove_spill

RED, BLUE = np.array([0.8, 0.2, 0.1]), np.array([0.1, 0.3, 0.9])


def soft_edge(size: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Return a wavy soft edge alpha (size, size) and the mixture of RED over BLUE."""
    y, x = np.mgrid[0:size, 0:size]
    alpha = np.clip((x - size / 2 - 4 * np.sin(y / 5)) / 8 + 0.5, 0, 1)
    return alpha, alpha[..., None] * RED + (1 - alpha[..., None]) * BLUE


def test_laplacian_is_symmetric_with_constants_in_its_kernel() -> None:
    image = np.random.default_rng(0).random((12, 14, 3))
    laplacian = matting_laplacian(image, np.ones((12, 14), bool))
    assert abs(laplacian - laplacian.T).max() < 1e-9
    assert np.abs(laplacian @ np.ones(12 * 14)).max() < 1e-9
    alpha = image @ np.array([0.2, 0.5, 0.1]) + 0.1  # linear in colour: Levin's model is exact, up to epsilon
    assert np.abs(laplacian @ alpha.ravel()).max() < 1e-3


def test_two_colour_mixture_is_unmixed() -> None:
    alpha, image = soft_edge()
    known = np.abs(np.arange(48) - 24)[None].repeat(48, 0) > 14
    solved = solve_alpha(image, known, np.where(known, np.round(alpha), 0.5), np.zeros_like(alpha))
    assert np.abs(solved - alpha).max() < 0.02


def test_prior_decides_where_colour_says_nothing() -> None:
    image = np.full((20, 20, 3), 0.4)
    known = np.zeros((20, 20), bool)
    known[:, 0], known[:, -1] = True, True
    prior = np.zeros((20, 20))
    prior[:, 12:] = 1
    solved = solve_alpha(image, known, prior, np.full((20, 20), 0.5))
    assert (solved[:, 3] < 0.1).all() and (solved[:, 16] > 0.85).all()


def test_foreground_holds_no_background() -> None:
    alpha, image = soft_edge()
    foreground = estimate_foreground(image, alpha)
    assert np.abs(foreground[alpha > 0.1] - RED).max() < 0.03
    assert np.abs(image[(alpha > 0.1) & (alpha < 0.9)] - RED).max() > 0.5


def test_spill_takes_the_background_hue_from_the_edge_only() -> None:
    size = 128
    alpha = np.zeros((size, size))
    alpha[:, :64] = 1
    hair, green = np.array([0.25, 0.2, 0.18]), np.array([0.3, 0.8, 0.2])
    image = np.where(alpha[..., None] > 0, hair, green)
    image[:, 56:64] = 0.7 * hair + 0.3 * green
    none = np.zeros((size, size), bool)
    clean = remove_spill(image, alpha, image, none, alpha == 0, none)

    def greenness(colours: np.ndarray) -> float:
        return float((colours[..., 1] - colours[..., [0, 2]].mean(-1)).mean())

    assert greenness(image[:, 56:64]) > 0.13 and greenness(clean[:, 56:64]) < 0.05
    np.testing.assert_allclose(clean[:, :32], image[:, :32], atol=0.01)
    np.testing.assert_allclose(remove_spill(image, alpha, image, none, alpha == 0, ~none), image, atol=0.01)


def test_the_small_inverse_agrees_with_lapack() -> None:
    from portrait_backend.portrait.closed_form import _inverse

    half = np.random.default_rng(0).normal(size=(50, 3, 3))
    matrices = half @ half.transpose(0, 2, 1) + 0.1 * np.eye(3)
    np.testing.assert_allclose(_inverse(matrices), np.linalg.inv(matrices), rtol=1e-8, atol=1e-8)
