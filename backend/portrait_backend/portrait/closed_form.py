"""Closed-form alpha matting and multi-level foreground colours, on numpy and scipy sparse matrices.

Sources: Levin, Lischinski, Weiss, "A Closed-Form Solution to Natural Image Matting" (2008), the matting Laplacian;
Germer, Uelwer, Conrad, Harmeling, "Fast Multi-Level Foreground Estimation" (2020), the foreground cost.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import cg

Array = NDArray[np.float64]

WINDOW_EPSILON = 1e-5
"""Colour variance (squared, colours in [0, 1]) below which a 3 x 3 window counts as flat."""
CG_TOLERANCE, CG_ITERATIONS = 1e-4, 600
SMALL_LEVEL, SMALL_SWEEPS, LARGE_SWEEPS = 32, 10, 3
COLOUR_SMOOTHNESS, EDGE_SMOOTHNESS = 1e-5, 0.1
"""Smoothness of the estimated colours everywhere, and more where alpha changes."""
WINDOWS_PER_CHUNK = 20_000


def solve_alpha(image: Array, known: NDArray[np.bool_], alpha: Array, prior_weight: Array) -> Array:
    """Solve the matte where it isn't known.

    image (H, W, 3) in [0, 1]; known (H, W); alpha (H, W): the matte where known, elsewhere a prior that counts with
    prior_weight (H, W) >= 0 (in units of the Laplacian, whose diagonal is about 9). Returns (H, W) in [0, 1].
    """
    unknown = ~known
    if not unknown.any():
        return np.clip(alpha, 0, 1)
    laplacian = matting_laplacian(image, unknown)
    u = np.flatnonzero(unknown.ravel())
    k = np.flatnonzero(known.ravel())
    rows = laplacian[u]
    weight = prior_weight.ravel()[u]
    flat = alpha.ravel().astype(np.float64)
    system = (rows[:, u] + sparse.diags(weight + 1e-9)).tocsr()
    right = weight * flat[u] - rows[:, k] @ flat[k]
    solution, _ = cg(system, right, x0=flat[u], rtol=CG_TOLERANCE, maxiter=CG_ITERATIONS, M=sparse.diags(1 / system.diagonal()))
    flat[u] = solution
    return np.clip(flat.reshape(alpha.shape), 0, 1)


def matting_laplacian(image: Array, wanted: NDArray[np.bool_]) -> sparse.csr_matrix:
    """Return the matting Laplacian (H W, H W) of image (H, W, 3), summed over all 3 x 3 windows that touch `wanted` (H, W)."""
    height, width = wanted.shape
    touched = cv2.dilate(wanted.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    touched[[0, -1], :] = touched[:, [0, -1]] = False
    centres = np.flatnonzero(touched.ravel())
    offsets = (np.arange(-1, 2)[:, None] * width + np.arange(-1, 2)).ravel()
    colours = image.reshape(-1, 3).astype(np.float64)
    total = sparse.csr_matrix((height * width, height * width))
    for start in range(0, len(centres), WINDOWS_PER_CHUNK):
        pixels = (centres[start : start + WINDOWS_PER_CHUNK, None] + offsets).astype(np.int32)
        values = _window_affinity(colours[pixels])
        rows = np.repeat(pixels, 9, axis=1).ravel()
        columns = np.tile(pixels, (1, 9)).ravel()
        total = total + sparse.csr_matrix((values.ravel(), (rows, columns)), shape=total.shape)
    return total


def _window_affinity(window: Array) -> Array:
    """Levin's eq. 12 per window: delta - (1 + (I_i - mu)^T (Sigma + eps / 9)^-1 (I_j - mu)) / 9, (M, 9, 3) -> (M, 9, 9)."""
    centred = window - window.mean(1, keepdims=True)
    covariance = centred.transpose(0, 2, 1) @ centred / 9 + (WINDOW_EPSILON / 9) * np.eye(3)
    affinity = centred @ _inverse(covariance) @ centred.transpose(0, 2, 1)
    return np.asarray(np.eye(9) - (1 + affinity) / 9)


def _inverse(matrices: Array) -> Array:
    """Inverses of symmetric positive matrices (M, 3, 3), by cofactors: LAPACK's batch call waits for its threads on every matrix."""
    a, b, c = matrices[:, 0], matrices[:, 1], matrices[:, 2]
    cofactors = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], 1)
    determinant = (a * cofactors[:, 0]).sum(1)
    return np.asarray(cofactors / determinant[:, None, None])


def estimate_foreground(image: Array, alpha: Array) -> Array:
    """Return foreground colours (H, W, 3) so that image = alpha * foreground + (1 - alpha) * background, both smooth.

    image (H, W, 3) and alpha (H, W) in [0, 1]. From 1 x 1 px to the full size, each level starts from the one below.
    """
    height, width = alpha.shape
    colours, mix = image.astype(np.float32), alpha.astype(np.float32)
    foreground = np.full((1, 1, 3), _weighted_mean(colours, mix), np.float32)
    background = np.full((1, 1, 3), _weighted_mean(colours, 1 - mix), np.float32)
    levels = max(1, int(np.ceil(np.log2(max(height, width)))))
    for level in range(levels + 1):
        size = (round(width ** (level / levels)), round(height ** (level / levels)))
        small, a = (_resized(x, size, cv2.INTER_AREA) for x in (colours, mix))
        foreground, background = (_resized(x, size, cv2.INTER_NEAREST) for x in (foreground, background))
        for _ in range(SMALL_SWEEPS if max(size) <= SMALL_LEVEL else LARGE_SWEEPS):
            foreground, background = _sweep(small, a, foreground, background)
    return np.asarray(foreground, np.float64)


def _resized(image: NDArray[np.float32], size: tuple[int, int], way: int) -> NDArray[np.float32]:
    return np.asarray(cv2.resize(image, size, interpolation=way), np.float32)


def _weighted_mean(image: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray((image * weight[..., None]).sum((0, 1)) / max(float(weight.sum()), 1e-6))


def _sweep(
    image: NDArray[np.float32], alpha: NDArray[np.float32], foreground: NDArray[np.float32], background: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One Jacobi sweep: every pixel's 2 x 2 system of F and B given its four neighbours."""
    pad_a = np.pad(alpha, 1, mode="edge")
    pad_f, pad_b = (np.pad(x, ((1, 1), (1, 1), (0, 0)), mode="edge") for x in (foreground, background))
    h, w = alpha.shape
    total = np.zeros_like(alpha)
    sum_f, sum_b = np.zeros_like(foreground), np.zeros_like(background)
    for y, x in ((0, 1), (2, 1), (1, 0), (1, 2)):
        weight = COLOUR_SMOOTHNESS + EDGE_SMOOTHNESS * np.abs(alpha - pad_a[y : y + h, x : x + w])
        total += weight
        sum_f += weight[..., None] * pad_f[y : y + h, x : x + w]
        sum_b += weight[..., None] * pad_b[y : y + h, x : x + w]
    a, t = alpha[..., None], total[..., None]
    # [a^2 + t, a (1 - a); a (1 - a), (1 - a)^2 + t] [F, B] = [a I + sum_f, (1 - a) I + sum_b]
    right_f, right_b = a * image + sum_f, (1 - a) * image + sum_b
    aa, ab, bb = a * a + t, a * (1 - a), (1 - a) ** 2 + t
    determinant = aa * bb - ab * ab
    return ((bb * right_f - ab * right_b) / determinant).clip(0, 1), ((aa * right_b - ab * right_f) / determinant).clip(0, 1)
