"""Provider `panohead`: the generator PanoHead (arXiv 2303.13071), inverted to the photo and tuned to it. Non-commercial weights.

PanoHead's planes are three slices deep and its world is EG3D's. It was trained on upright crops seen from 2.7 of its units at a focal
length of 4.2647 image widths. The head is rendered from the field itself, from the portrait's own camera: what must agree is where the
face lies in its world, and that is the placement's task.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from portrait_backend.context import Context
from portrait_backend.models.converted import file_sha256, require_converted
from portrait_backend.portrait.faces import FaceDetector
from portrait_backend.portrait.head_pose import load_landmark_model
from portrait_backend.portrait.mediapipe_tools import MediaPipeFaces
from portrait_backend.portrait.types import Portrait
from portrait_backend.prior.eg3d import PlaneGenerator, load_generator
from portrait_backend.prior.inversion import invert, latent_statistics
from portrait_backend.prior.perceptual import NAME as PERCEPTUAL
from portrait_backend.prior.placement import Placement, five_points, measure_placement, nominal_placement
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.head import Head
from portrait_shared.settings import PriorSettings

KIND = "panohead"
FOCAL, RADIUS = 4.2647, 2.7
"""The training cameras': image widths, PanoHead's units."""
EYES_APART, EYES_DOWN = 4.4, 0.1
"""The training crop is 4 eye distances wide, and a tenth more on the sides and on top; its centre is a tenth of the way to the mouth."""
EYES_FORWARD = 0.2
"""Assumed distance of the eyes before the origin, PanoHead's units (9 cm); only for the nominal placement."""
MEAN_SAMPLES_SEED = 123
NOT_FOUND = "no face was found on the prior's own head: it was placed by the rule of the training photos"
log = logging.getLogger(__name__)


def front_camera(size: int = 512) -> Camera:
    """Return the training camera in front of the face, in PanoHead's world."""
    return Camera.orbit(0, 0, size, RADIUS, math.degrees(2 * math.atan(0.5 / FOCAL)))


def nominal() -> Placement:
    """Return the placement that follows from the training crop: eye distance, centre and size of the picture."""
    ours = five_points(load_landmark_model().mean)
    eyes, mouth = ours[:2].mean(0), ours[3:].mean(0)
    width = (RADIUS - EYES_FORWARD) / FOCAL
    per_unit = width / EYES_APART / float((ours[1] - ours[0]).norm())
    centre = eyes + EYES_DOWN * (mouth - eyes)
    top = width * (0.5 - (0.5 + 0.1) / 1.1)  # the crop has a tenth more above
    theirs = (ours - centre) * per_unit
    return nominal_placement(theirs + theirs.new_tensor([0.0, top, EYES_FORWARD]))


@lru_cache(maxsize=1)
def cached_generator(path: Path, sha256: str, device: torch.device) -> PlaneGenerator:
    """Return a converted generator on a device (kept in memory)."""
    return load_generator(path, device)


@lru_cache(maxsize=4)
def cached_placement(path: Path, sha256: str, device: torch.device) -> Placement:
    """Return where the generator's heads stand in our world, measured on its mean head."""
    generator = cached_generator(path, sha256, device)
    with MediaPipeFaces() as detector:
        return place_generator(generator, detector)


def place_generator(generator: PlaneGenerator, detector: FaceDetector) -> Placement:
    """Measure the placement on the mean head seen from the front; the nominal one where no face is found on it."""
    mean, _ = latent_statistics(generator, front_camera().eg3d_label(), torch.Generator().manual_seed(MEAN_SAMPLES_SEED))
    with torch.no_grad():
        head = generator.head(mean)
    found = measure_placement(head, front_camera(), detector, load_landmark_model().mean.float())
    if found is None:
        log.warning(NOT_FOUND)
    return found or nominal()


class PanoHeadPrior:
    """Inversion and tuning; steps, latent and size of the comparison are settings."""

    def initialise(self, portrait: Portrait, settings: PriorSettings, context: Context) -> Head:
        """Return the generator's head of the photo.

        PortraitDiffusionError ``weights-missing``, ``weights-unreadable``, ``inversion-diverged``.
        """
        context.report(0, max(1, settings.inversion_steps + settings.tuning_steps))
        path = require_converted(KIND)
        digest = file_sha256(path)
        generator, placement = cached_generator(path, digest, context.device), cached_placement(path, digest, context.device)
        found = invert(generator, placement.head, front_camera().eg3d_label(), portrait, settings, context)
        head = placement.head(frozen(found.generator, found.latent))
        meta: dict[str, Any] = {
            "provider": KIND,
            "weights_sha256": digest,
            "photo_sha256": portrait.sha256,
            "placement": placement.facts(),
            "perceptual": PERCEPTUAL,
            "colour_error": {"inversion": _number(found.inverted_error), "tuning": _number(found.tuned_error)},
            "warnings": [] if placement.measured else [NOT_FOUND],
        }
        return replace(head, meta=meta)


def random_head(seed: int, device: torch.device, truncation: float = 0.7) -> Head:
    """Return a random head of the generator in our world; seed: which one."""
    path = require_converted(KIND)
    digest = file_sha256(path)
    generator = cached_generator(path, digest, device)
    z = torch.randn(generator.backbone.config.z_dim, generator=torch.Generator().manual_seed(seed)).to(device)
    w = generator.latent(z, front_camera().eg3d_label().to(device), truncation)
    head = cached_placement(path, digest, device).head(frozen(generator, w))
    return replace(head, meta={"provider": KIND, "weights_sha256": digest, "seed": seed})


@torch.no_grad()
def frozen(generator: PlaneGenerator, latent: Tensor) -> Head:
    """Return the head of a latent without graphs."""
    return generator.head(latent.detach())


def _number(error: float) -> float | None:
    """Return an error as JSON data: None for that of no steps."""
    return error if math.isfinite(error) else None
