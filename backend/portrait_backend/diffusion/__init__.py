"""The diffusion prior: codec, denoiser with its conditions, and guidance; starter and full scale differ in configs and weights only.

Images are rgb or normal maps over mid grey (0.5). Normal maps are in camera space, x right, y up, z toward the viewer, stored as
(n + 1) / 2: they look alike from every side, and grey means "no surface" in both domains.
"""

from portrait_backend.models import SHIPPED

STARTER = SHIPPED
"""Where a file or folder of weights is named: the shipped one."""
BACKGROUND = 0.5
"""Grey level behind the figure in every image that the codec and the denoiser see."""
