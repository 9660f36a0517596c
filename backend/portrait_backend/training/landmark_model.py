"""Build the landmark model (PCA of face-mesh landmarks in head units) from a rendered data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from portrait_backend.portrait.head_pose import LANDMARK_SIZE, landmark_size

FACE_MESH = slice(68, 536)
"""The 468 face-mesh landmarks among the data set's 536."""


def build_landmark_model(data: Path, out: Path, components: int = 25, limit: int | None = None) -> int:
    """Write mean (468, 3) and basis (components, 468, 3) to `out`; returns the number of identities used."""
    shapes = []
    for folder in sorted(data.glob("id*"))[:limit]:
        if (folder / "cameras.json").exists():
            points = np.load(folder / "landmarks.npz")["points"][FACE_MESH]
            shapes.append(points * (LANDMARK_SIZE / landmark_size(points)))
    x = np.stack(shapes).reshape(len(shapes), -1)
    mean = x.mean(0)
    _, s, v = np.linalg.svd(x - mean, full_matrices=False)
    basis = v[:components] * (s[:components] / np.sqrt(len(x)))[:, None]
    save_file(
        {
            "mean": torch.from_numpy(mean.reshape(-1, 3)).half().contiguous(),
            "basis": torch.from_numpy(basis.reshape(components, -1, 3)).half().contiguous(),
        },
        out,
        metadata={"identities": str(len(x))},
    )
    return len(x)
