"""How far the face comes forward: where the photo shows bare skin, nothing stands before the face that its landmarks tell.

The network gives a fringe a volume that ends in a step, a visor on which the forehead is painted. The photo knows where hair ends.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from scipy.interpolate import LinearNDInterpolator
from torch import Tensor

from portrait_backend.portrait.head_pose import load_landmark_model
from portrait_backend.portrait.types import Portrait
from portrait_backend.prior.hair_colour import bare_face_pixels, hair_pixels

BEFORE = 0.03
"""Distance (head units) before the landmarks' surface from which there is nothing. Sixteen synthetic faces: 19 of 20 pixels of skin lie at
most 0.02 before it, fringes 0.03 to 0.1."""
BORDER = 5
"""Pixels of 512 that bare skin loses at its border, where it may be a neighbour's."""
DEPTH_SIZE = 128


def before_face(portrait: Portrait, points: Tensor) -> Tensor:
    """Return which points (N, 3) in head units lie before what the photo shows to be bare skin of the face: (N,) bool."""
    bare = bare_face_pixels(portrait, hair_pixels(portrait)).numpy().astype(np.uint8)
    clear = torch.from_numpy(cv2.erode(bare, np.ones((BORDER, BORDER), np.uint8))).float()
    pixels, z = portrait.camera.project(points)
    at = (pixels / portrait.camera.width * 2 - 1)[None, None]
    asked = F.grid_sample(clear[None, None], at, align_corners=False, padding_mode="zeros")[0, 0, 0] > 0.5
    found = F.grid_sample(_face_depth(portrait)[None, None], at, align_corners=False, padding_mode="zeros")[0, 0, 0]
    return asked & (z < found - BEFORE)


def _face_depth(portrait: Portrait) -> Tensor:
    """Return the z-depth (DEPTH_SIZE, DEPTH_SIZE) of the landmarks' surface from the photo's camera; 0 off it."""
    camera = portrait.camera.resized(DEPTH_SIZE)
    pixels, z = camera.project(load_landmark_model().shape(portrait.coefficients.double()).float())
    surface = LinearNDInterpolator(pixels.numpy(), z.numpy(), fill_value=0.0)
    return torch.from_numpy(surface(camera.pixel_centres().numpy())).float().view(DEPTH_SIZE, DEPTH_SIZE)
