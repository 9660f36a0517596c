"""Is noise that was carried to another view still white? Variance and neighbour correlation on a sphere, three ways to carry it (Eq. 13).

Wide latents (96 channels) stand for many draws. The way the method uses is "scatter"; it must stay within the targets.
"""

from __future__ import annotations

import sys

import torch
from splatting import sphere
from torch import Tensor

from portrait_backend.geometry.reprojection import carried
from portrait_backend.geometry.splatting import splat_points
from portrait_backend.geometry.surface_views import SurfaceView
from portrait_backend.refinement.noise_resampling import ANYWHERE, anchor_noise

WIDTH, CHANNELS, AZIMUTHS = 64, 96, (10, 30, 60)
VARIANCE_WITHIN, CORRELATION_UNDER = 0.02, 0.02


def composited(noise: Tensor, driver: SurfaceView, target: SurfaceView, mode: str) -> Tensor:
    """Carry noise as one carries colours: splats of 1.5 px, laid over each other ("alpha") or the nearest one alone."""
    driver, target = driver.shrunk(WIDTH), target.shrunk(WIDTH)
    pixels, z, keep = carried(driver, target, ANYWHERE)
    splats = splat_points(pixels, z, keep, WIDTH, WIDTH, radius=1.5, k=8)
    warped = splats.composite(noise.flatten(2).transpose(1, 2), mode)  # type: ignore[arg-type]
    return torch.where(splats.covered[:, None], warped, torch.nan)


def statistics(noise: Tensor) -> tuple[float, float]:
    """Return variance and the larger correlation with the right and the lower neighbour, over the cells that are not nan."""
    known = torch.isfinite(noise[0, 0])
    pairs = (
        (noise[..., 1:], noise[..., :-1], known[:, 1:] & known[:, :-1]),
        (noise[..., 1:, :], noise[..., :-1, :], known[1:] & known[:-1]),
    )
    variance = float(noise[..., known].var())
    return variance, max(abs(float((a * b)[..., w].mean())) / variance for a, b, w in pairs)


def main() -> int:
    """Print the table; fail if the method's own way misses a target."""
    noise = torch.randn(1, CHANNELS, WIDTH, WIDTH, generator=torch.Generator().manual_seed(0))
    driver, good = sphere(0, 256), True
    print(f"{'azimuth':>8} {'way':>10} {'variance':>9} {'correlation':>12}")
    for azimuth in AZIMUTHS:
        target = sphere(azimuth, 256)
        scattered = anchor_noise(noise, driver, target, torch.Generator().manual_seed(1))
        scattered = torch.where(target.shrunk(WIDTH).depth[:, None] > 0, scattered, torch.nan)
        ways = {"alpha": composited(noise, driver, target, "alpha"), "nearest": composited(noise, driver, target, "nearest")}
        for name, carried_noise in (ways | {"scatter": scattered}).items():
            variance, correlation = statistics(carried_noise)
            print(f"{azimuth:8d} {name:>10} {variance:9.3f} {correlation:12.3f}")
            if name == "scatter":
                good &= abs(variance - 1) <= VARIANCE_WITHIN and correlation < CORRELATION_UNDER
    print(f"targets (variance within 1 +- {VARIANCE_WITHIN}, correlation under {CORRELATION_UNDER}): {'met' if good else 'MISSED'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
