"""The fixed views: v_0 is the portrait's own, the others lie on a ring around the head and are driven outward from the front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from portrait_backend.radiance.cameras import Camera


@dataclass(frozen=True)
class RingView:
    """A fixed view: azimuth and elevation in degrees, camera, number of its driver (itself for v_0), steps away from v_0."""

    azimuth: float
    elevation: float
    camera: Camera
    driver: int
    order: int

    @property
    def name(self) -> str:
        """A name for files and logs."""
        return f"azimuth{round(self.azimuth):+04d}"


def view_ring(count: int, elevations: Sequence[float], reference: Camera, yaw: float, pitch: float, size: int) -> list[RingView]:
    """Return v_0 .. v_{count-1}: the reference view, then pairs to either side, evenly spaced over the full turn, `size` px.

    elevations: of the views one, two, ... steps away from v_0, repeated from the start when they run out. Each view's driver is its
    inner neighbour; with an even count the last view lies opposite v_0 and has one driver of two possible ones.
    """
    if count < 1 or not elevations:
        raise ValueError(f"a view ring needs at least one view and one elevation, got {count} and {len(elevations)}")
    views = [RingView(yaw, pitch, reference.resized(size), 0, 0)]
    for number in range(1, count):
        order, side = (number + 1) // 2, 1 if number % 2 else -1
        azimuth = (yaw + side * order * 360 / count + 180) % 360 - 180
        elevation = float(elevations[(order - 1) % len(elevations)])
        views.append(RingView(azimuth, elevation, Camera.orbit(azimuth, elevation, size), max(0, number - 2), order))
    return views


def outward(ring: Sequence[RingView]) -> list[int]:
    """Return the views' numbers, one side after the other, each after its driver: only two gradients have to be kept at a time."""
    sides = [[n for n in range(1, len(ring)) if n % 2 == first] for first in (1, 0)]
    return [0, *sides[0], *sides[1]]


def between(ring: Sequence[RingView], size: int, elevation: float, generator: torch.Generator) -> RingView:
    """Return a random view between two neighbours on the ring, within `elevation` degrees of their elevation, driven by the nearer one."""
    spacing = 360 / len(ring)
    number = int(torch.randint(0, len(ring), (1,), generator=generator, device=generator.device))
    draws = torch.rand(2, generator=generator, device=generator.device).tolist()
    azimuth = (ring[number].azimuth + spacing * (draws[0] - 0.5) + 180) % 360 - 180
    tilt = max(-60.0, min(60.0, ring[number].elevation + elevation * (2 * draws[1] - 1)))
    return RingView(azimuth, tilt, Camera.orbit(azimuth, tilt, size), number, ring[number].order + 1)
