"""How far the face comes forward: where the photo shows bare skin, nothing stands before the face that its landmarks tell.

The network gives a fringe a volume that ends in a step, a visor on which the forehead is painted. The photo knows where hair ends.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import Delaunay
from torch import Tensor

from portrait_backend.geometry.rasterise import rasterise
from portrait_backend.portrait.head_pose import load_landmark_model
from portrait_backend.portrait.parts import bare_face_pixels
from portrait_backend.portrait.regions import InPhoto
from portrait_backend.portrait.types import Portrait

BEFORE = 0.03
"""Distance (head units) before the landmarks' surface from which there is nothing. Sixteen synthetic faces: 19 of 20 pixels of skin lie at
most 0.02 before it, fringes 0.03 to 0.1."""
RISE = 0.8
"""How much farther hair may stand before the face per distance from bare skin: a fringe gains volume upward, it isn't a visor."""
PIXEL = 0.0017
"""A pixel of 512 at the face, head units."""
BORDER = 5
"""Pixels of 512 that bare skin loses at its border, where it may be a neighbour's."""
DEPTH_SIZE = 128


def before_face(portrait: Portrait, hair: Tensor, seen: InPhoto) -> Tensor:
    """Return which points lie before what the photo shows to be bare skin of the face, or too far before it in the hair beside it.

    seen: N points; hair (512, 512) bool: the photo's hair. Returns (N,) bool.
    """
    bare = cv2.erode(bare_face_pixels(portrait, hair).numpy().astype(np.uint8), np.ones((BORDER, BORDER), np.uint8))
    if not bare.any():
        return torch.zeros(len(seen.depth), dtype=torch.bool)
    camera, depth = portrait.camera, _face_depth(portrait)
    beside = torch.from_numpy(cv2.distanceTransform(1 - bare, cv2.DIST_L2, 5)) / float(camera.intrinsics[0, 0])
    allowed = BEFORE + RISE * (beside * float(depth[depth > 0].mean()) - BORDER * PIXEL).clamp_min(0)
    near = seen.within(depth > 0)
    asked = seen[near]
    near[near.clone()] = asked.depth < asked.values(depth) - asked.values(allowed)
    return near


def _face_depth(portrait: Portrait) -> Tensor:
    """Return the z-depth (DEPTH_SIZE, DEPTH_SIZE) of the landmarks' surface, its nearest around, from the photo's camera; 0 off it."""
    model = load_landmark_model()
    pixels, z = portrait.camera.resized(DEPTH_SIZE).project(model.shape(portrait.coefficients.double()).float())
    faces = torch.from_numpy(Delaunay(model.mean[:, :2].numpy()).simplices).long()
    depth = rasterise(torch.cat([pixels, z[:, None]], 1).double(), faces, DEPTH_SIZE, DEPTH_SIZE).depth
    near, far = (sign * F.max_pool2d(sign * depth[None, None].float(), 3, 1, 1)[0, 0] for sign in (-1, 1))
    return torch.where(torch.isfinite(far), near, 0)
