"""What stage 3 needs to go on where it stopped: Psi's planes, the optimiser's memory, each view's anchor noise and kept image.

One safetensors file. It belongs to one photo, head and settings; anything else is refused by its fingerprint and the stage starts anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from portrait_backend.files import atomic_path
from portrait_backend.portrait.types import Portrait
from portrait_backend.radiance.head import Head
from portrait_backend.refinement.weights import fingerprint
from portrait_shared.settings import RefinementSettings, to_dict

FORMAT = 1
log = logging.getLogger(__name__)


@dataclass
class ViewState:
    """A fixed view: anchor noise (1, C, h, w), the image it keeps (1, 3, S, S) over grey and where that is new (1, 1, S, S).

    None before its first turn.
    """

    anchor: Tensor | None = None
    image: Tensor | None = None
    new: Tensor | None = None


@dataclass
class RefinementState:
    """Everything that changes: Psi (one tensor per parameter), its optimiser, the views, the generator's state, rounds done."""

    parameters: list[Tensor]
    optimiser: torch.optim.Optimizer
    views: list[ViewState]
    iteration: int = 0
    kept: list[int] = field(default_factory=list)

    def save(self, path: Path, fingerprint: str, generator: torch.Generator) -> None:
        """Write the state atomically."""
        tensors: dict[str, Tensor] = {"generator": generator.get_state()}
        tensors |= {f"parameter.{k}": p.detach() for k, p in enumerate(self.parameters)}
        for k, values in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{k}.{name}": torch.as_tensor(value) for name, value in values.items()}
        for k, view in enumerate(self.views):
            tensors |= {f"view.{k}.{name}": v for name, v in vars(view).items() if v is not None}
        record = {"format": FORMAT, "fingerprint": fingerprint, "iteration": self.iteration, "kept": self.kept}
        with atomic_path(path) as part:
            save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, part, {"refinement": json.dumps(record)})

    def load(self, path: Path, fingerprint: str, generator: torch.Generator) -> bool:
        """Continue from a file; False (and nothing changed) if there is none or it belongs to other work."""
        if not path.is_file():
            return False
        try:
            with safe_open(path, framework="pt") as file:
                record = json.loads((file.metadata() or {})["refinement"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            log.warning("The refinement's state in %s can't be read (%s); the stage starts anew", path, error)
            return False
        if (record.get("format"), record.get("fingerprint")) != (FORMAT, fingerprint):
            log.info("The refinement's state in %s belongs to another photo, head or settings; the stage starts anew", path)
            return False
        self._fill(tensors)
        generator.set_state(tensors["generator"])
        self.iteration, self.kept = int(record["iteration"]), list(record["kept"])
        return True

    def _fill(self, tensors: dict[str, Tensor]) -> None:
        device = self.parameters[0].device
        memory: dict[int, dict[str, Any]] = {}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            number, _, part = rest.partition(".")
            if kind == "parameter":
                self.parameters[int(number)].data.copy_(value)
            elif kind == "optimiser":
                memory.setdefault(int(number), {})[part] = value
            elif kind == "view":
                setattr(self.views[int(number)], part, value.to(device))
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": memory})


def fingerprint_of(head: Head, portrait: Portrait, settings: RefinementSettings, networks: Sequence[nn.Module] = ()) -> str:
    """Return what identifies the work: a hash of the photo, the head's planes, the settings and the networks' weights."""
    record = [portrait.sha256, to_dict(settings), [fingerprint(network) for network in networks]]
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    digest.update(portrait.rgba.numpy().tobytes())
    for plane in (head.geometry, head.appearance):
        digest.update(plane.planes.detach().half().cpu().numpy().tobytes())
    return digest.hexdigest()
