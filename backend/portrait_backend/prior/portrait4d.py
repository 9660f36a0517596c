"""Provider `portrait4d`: the paper's own choice [7], Portrait4D static: one pass from the photo to planes.

The photo is cropped as its training photos were: five landmarks, fitted to a template, decide scale and centre. The planes hold the
head turned to the front with the photo's expression, in a world whose unit and origin the placement brings to ours.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from portrait_backend.context import Context
from portrait_backend.models.checkpoint_kinds import KINDS
from portrait_backend.models.conversion import METADATA_KEY
from portrait_backend.models.converted import file_sha256, require_converted
from portrait_backend.portrait.faces import FaceDetector
from portrait_backend.portrait.head_pose import load_landmark_model
from portrait_backend.portrait.mediapipe_tools import MediaPipeFaces
from portrait_backend.portrait.types import PORTRAIT_SIZE, Portrait
from portrait_backend.prior.eg3d import SURFACE_DENSITY, neutral_planes
from portrait_backend.prior.placement import Placement, five_points, measure_placement, nominal_placement
from portrait_backend.prior.portrait4d_network import Reconstructor, config_of
from portrait_backend.prior.stylegan import EqualisedLinear
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.decoder import DensityActivation, SoftplusDecoder
from portrait_backend.radiance.head import Head, TriPlane
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import PriorSettings

KIND = "portrait4d"
CROP = 512
TEMPLATE = (
    (-0.31148657, 0.19036078, 0.53377953),
    (0.30979887, 0.18972035, 0.53179526),
    (0.0032535, -0.14617933, 0.95244243),
    (-0.25216928, -0.4813392, 0.62405732),
    (0.2484662, -0.4812824, 0.62235769),
)
"""Five points (eyes, nose tip, mouth corners, the image's left first; y up, z to the camera) around the origin of its crop and world."""
TEMPLATE_PIXELS = 180.0
"""Pixels of the crop per unit of the template."""
FOCAL, DISTANCE, HEIGHT = 4.2634, 4.2, 0.01
"""The camera in front: focal length in image widths, distance and height in its units."""
UNUSED = (
    "superresolution.", "background.", "deformer.", "w_avg",
    "encoder_canonical.maps", "encoder_canonical.proj_y",
)  # fmt: skip
"""Parts that the static path doesn't need, and `_CROSS` within the blocks."""
_CROSS = (".attn2.", ".norm2.")
NOT_FOUND = "no face was found on the prior's head: it was placed by the rule of the training photos"
log = logging.getLogger(__name__)


def crop_similarity(points: Tensor) -> Tensor:
    """Return the map (2, 3) from crop px to the px of five points (5, 2) (y down): least squares to the template, without a turn."""
    up = points.double() * points.new_tensor([1.0, -1.0]).double()
    template = torch.cat([torch.tensor(TEMPLATE, dtype=torch.float64), torch.ones(5, 1, dtype=torch.float64)], 1)
    fitted = torch.linalg.lstsq(template, up, driver="gelsd").solution  # (4, 2): the rows of a weak-perspective camera
    per_unit = fitted[:3].norm(dim=0).mean()
    scale = per_unit / TEMPLATE_PIXELS
    centre = fitted[3] * torch.tensor([1.0, -1.0], dtype=torch.float64)
    return torch.cat([torch.eye(2, dtype=torch.float64) * scale, (centre - scale * CROP / 2)[:, None]], 1).float()


def crop_of(portrait: Portrait) -> Tensor:
    """Return the network's input (1, 3, 512, 512) in [-1, 1]: the photo with its background, padded with its edge."""
    similarity = crop_similarity(five_points(portrait.landmarks))
    y, x = torch.meshgrid(*2 * (torch.arange(CROP) + 0.5,), indexing="ij")
    at = torch.stack([x, y, torch.ones_like(x)], -1) @ similarity.T
    image = portrait.image.permute(2, 0, 1)[None]
    crop = F.grid_sample(image, at[None] / PORTRAIT_SIZE * 2 - 1, padding_mode="border", align_corners=False)
    return crop.clamp(0, 1) * 2 - 1


def front_camera(size: int = CROP) -> Camera:
    """Return the camera in front of the face, in its world."""
    pose = torch.tensor([[1.0, 0, 0, 0], [0, -1, 0, HEIGHT], [0, 0, -1, DISTANCE]])
    return Camera(pose, torch.tensor([[FOCAL * size, 0, size / 2], [0, FOCAL * size, size / 2], [0, 0, 1.0]]), size, size)


def nominal() -> Placement:
    """Return the placement that follows from the crop: the template's points, as large as the front camera sees them."""
    template = torch.tensor(TEMPLATE)
    width = TEMPLATE_PIXELS / CROP  # image widths per unit of the template
    unit = width * DISTANCE / (FOCAL + width * float(template[:, 2].mean()))  # at the face, which is nearer than the origin
    return nominal_placement(template * unit + template.new_tensor([0.0, HEIGHT, 0.0]))


@torch.no_grad()
def head_decoder(network: Reconstructor) -> SoftplusDecoder:
    """Return the decoder with its gains folded in, density first."""
    hidden = network.decoder.net[0]
    layers = [layer.folded() for layer in (network.decoder.out_sigma, network.decoder.out_rgb)]
    weight, bias = (torch.cat(parts) for parts in zip(*layers, strict=True))
    assert isinstance(hidden, EqualisedLinear)
    first_weight, first_bias = hidden.folded()
    decoder = SoftplusDecoder(first_weight.shape[1], first_weight.shape[0], "sigmoid")
    decoder.load_state_dict({"hidden1.weight": first_weight, "hidden1.bias": first_bias, "out.weight": weight, "out.bias": bias})
    return decoder.requires_grad_(False).eval().to(weight.device)


@torch.no_grad()
def reconstruct(network: Reconstructor, crop: Tensor) -> Head:
    """Return the head of a crop (1, 3, H, W) in the network's own world."""
    planes = KINDS[KIND].planes
    features = neutral_planes(network(crop), planes)
    triplane = TriPlane(features, planes.depth, planes.axes, planes.half_extent, planes.reduce, planes.padding)
    activation = DensityActivation("softplus", bias=planes.density_bias, surface=SURFACE_DENSITY)
    return Head(triplane, triplane, head_decoder(network), activation, None, {"provider": KIND}, planes.bounds)


def load_reconstructor(path: Path, device: torch.device | None = None) -> Reconstructor:
    """Load what `models convert --as portrait4d` wrote; fp32, evaluation mode. PortraitDiffusionError ``weights-unreadable``."""
    try:
        with safe_open(path, framework="pt", device=str(device or "cpu")) as file:
            kind = json.loads((file.metadata() or {})[METADATA_KEY])["kind"]
            if kind != KIND:
                raise ValueError(f"it holds a {kind} network")
            tensors = {name: file.get_tensor(name).float() for name in file.keys() if used(name)}  # noqa: SIM118 - not a dict
        with torch.device("meta"):
            network = Reconstructor(config_of({name: tuple(value.shape) for name, value in tensors.items()}))
        network.load_state_dict(tensors, assign=True)
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        hint = "Convert the published checkpoint again with portrait-diffusion models convert"
        raise PortraitDiffusionError("weights-unreadable", f"{path} is no reconstructor ({reason})", hint) from error
    return network.requires_grad_(False).eval()


def used(name: str) -> bool:
    """Tell whether the static path needs a tensor of the checkpoint."""
    return not name.startswith(UNUSED) and not (name.startswith("encoder_canonical.trans_blocks") and any(x in name for x in _CROSS))


@lru_cache(maxsize=1)
def cached_reconstructor(path: Path, sha256: str, device: torch.device) -> Reconstructor:
    """Return a converted reconstructor on a device (kept in memory)."""
    return load_reconstructor(path, device)


class Portrait4DPrior:
    """One pass; no fit."""

    def __init__(self, detector: FaceDetector | None = None) -> None:
        self.detector = detector

    def initialise(self, portrait: Portrait, settings: PriorSettings, context: Context) -> Head:
        """Return the network's head of the photo. PortraitDiffusionError ``weights-missing``, ``weights-unreadable``."""
        context.report(0, 3)
        path = require_converted(KIND)
        digest = file_sha256(path)
        network = cached_reconstructor(path, digest, context.device)
        context.report(1, 3)
        head = reconstruct(network, crop_of(portrait).to(context.device))
        context.report(2, 3)
        placement = self._place(head, portrait)
        meta = {
            "provider": KIND,
            "weights_sha256": digest,
            "photo_sha256": portrait.sha256,
            "placement": placement.facts(),
            "warnings": [] if placement.measured else [NOT_FOUND],
        }
        context.report(3, 3)
        return replace(placement.head(head), meta=meta)

    def _place(self, head: Head, portrait: Portrait) -> Placement:
        ours = load_landmark_model().shape(portrait.coefficients.double()).float()
        if self.detector is not None:
            found = measure_placement(head, front_camera(), self.detector, ours)
        else:
            with MediaPipeFaces() as detector:
                found = measure_placement(head, front_camera(), detector, ours)
        if found is None:
            log.warning(NOT_FOUND)
        return found or nominal()
