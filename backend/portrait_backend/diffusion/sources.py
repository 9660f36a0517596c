"""Where the networks of a job come from: the shipped files, or models that were downloaded and weights trained over them.

Downloaded models lie in the folder of models; networks trained over them are put in its folder `trained/` by whoever trained them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from portrait_backend.diffusion import STARTER
from portrait_backend.models.catalogue import find_model
from portrait_backend.models.store import model_path, models_folder, read_record, sha256_of, state_of
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import DiffusionSettings

DENOISER, NORMAL_DENOISER = "sd15", "sd15-normal"
BRUSHNETS = ("brushnet", "brushnet-x")
"""What the branches start from where nobody has trained them; the first that is installed."""
TRAINED, HYBRID_PRIORS, DETAIL_UNET = "trained", "hybrid_priors.safetensors", "detail_unet.safetensors"
STARTER_SIZE, FULL_SIZE = 128, 512
"""Side in px of the images that stage 2's denoiser is shown. The starter is trained at 128 and 256 px, and 128 costs a quarter."""
UNTRAINED = (
    "no trained branches are installed: stage 3 runs with those of {} as its Explicit branch, "
    "without Implicit branch and geometry condition"
)


@dataclass(frozen=True)
class Sources:
    """Files and folders as `load_codec` and its kin take them; "starter" is the shipped one.

    normal: the denoiser of normal maps. priors: the trained branches, None: start them from `brushnet`. detail_unet: a trained phi.
    record: {name: sha256}, what the job notes beside the shipped weights; branches: where stage 3's come from, "" where they are the
    shipped ones; warnings: what the user should know.
    """

    codec: str | Path = STARTER
    denoiser: str | Path = STARTER
    normal: str | Path = STARTER
    priors: str | Path | None = STARTER
    brushnet: Path | None = None
    detail_unet: Path | None = None
    size: int = STARTER_SIZE
    record: dict[str, str] = field(default_factory=dict)
    branches: str = ""
    warnings: tuple[str, ...] = ()


def find_sources(
    settings: DiffusionSettings,
    stages: Collection[str] = ("restoration", "refinement"),
    folder: Path | None = None,
    trained: bool = True,
) -> Sources:
    """Return where the networks of `stages` are. Nothing large is read. trained: whether networks trained over them count.

    PortraitDiffusionError ``weights-missing`` names everything that must be downloaded first; ``model-damaged``.
    """
    if settings.weights == STARTER or not stages:
        return Sources()
    where = models_folder(folder)
    own = [where / TRAINED / name for name in (HYBRID_PRIORS, DETAIL_UNET)]
    priors, phi = (path if trained and path.is_file() else None for path in own)
    brushnet = next((name for name in BRUSHNETS if state_of(find_model(name), where) == "installed"), BRUSHNETS[0])
    needed = [DENOISER]
    needed += [NORMAL_DENOISER] if "restoration" in stages else []
    needed += [brushnet] if "refinement" in stages and priors is None else []
    _refuse_missing(needed, where)
    paths = {name: model_path(name, where) for name in needed}
    warnings = (UNTRAINED.format(find_model(brushnet).title),) if brushnet in paths else ()
    record = {name: _identity(name, where) for name in needed}
    record |= {f"trained/{path.name}": sha256_of(path) for path in (priors, phi) if path is not None}
    return Sources(
        codec=paths[DENOISER],
        denoiser=paths[DENOISER],
        normal=paths.get(NORMAL_DENOISER, paths[DENOISER]),
        priors=priors,
        brushnet=paths.get(brushnet),
        detail_unet=phi,
        size=FULL_SIZE,
        record=record,
        branches="" if "refinement" not in stages else f"{brushnet}, untrained" if priors is None else f"trained/{HYBRID_PRIORS}",
        warnings=warnings,
    )


def _refuse_missing(names: list[str], where: Path) -> None:
    missing = [name for name in names if state_of(find_model(name), where) in ("absent", "incomplete")]
    if missing:
        raise PortraitDiffusionError(
            "weights-missing",
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed in {where}",
            "Run " + " && ".join(f"portrait-diffusion models download {name}" for name in missing) + ", or use --weights starter",
        )


def _identity(name: str, where: Path) -> str:
    """Return what tells one installation of a model from another: a digest over the sha256 that its record lists."""
    files: list[dict[str, Any]] = (read_record(find_model(name), where) or {}).get("files", [])
    return hashlib.sha256("\n".join(sorted(f"{f['path']} {f['sha256']}" for f in files)).encode()).hexdigest()
