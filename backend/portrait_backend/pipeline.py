"""The whole job: photo -> Portrait -> Head -> HeadMesh -> output folder, with one progress callback and one cancel point."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from portrait_backend import __version__, devices
from portrait_backend.context import Context, Progress
from portrait_backend.job_folder import job_folder, write_record
from portrait_backend.models.inventory import starter_weights
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import Settings, to_dict, validate

if TYPE_CHECKING:
    from portrait_backend.mesh.types import HeadMesh
    from portrait_backend.portrait.types import Portrait
    from portrait_backend.radiance.head import Head

AVAILABLE_STAGES = ("prior",)
CPU_ALLOCATOR = "DefaultCPUAllocator"
"""Torch names it in the plain RuntimeError that stands for "out of memory" on the CPU."""
RECORDED_PACKAGES = (
    "torch", "numpy", "scipy", "pillow", "mediapipe", "opencv-contrib-python", "numba", "PyMCubes", "xatlas", "fast-simplification",
    "safetensors",
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What a job made; record: the contents of job.json; output: the folder, None if nothing was written."""

    portrait: Portrait
    head: Head
    mesh: HeadMesh
    record: dict[str, Any]
    output: Path | None

    @property
    def warnings(self) -> list[str]:
        """What the user should know, one line each."""
        return list(self.record["warnings"])


def generate(
    photo: str | Path,
    settings: Settings | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    output: str | Path | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Result:
    """Make a 3D head from one portrait photo and write it to the folder `output` (None: keep it in memory only).

    The folder appears when everything in it is complete; an earlier job there is replaced. `cancelled` is asked
    at every progress report. Raises PortraitDiffusionError, or Cancelled.
    """
    settings = validate(settings or Settings())
    check_stages(settings)
    device = devices.choose_device(settings.device)
    job = _Job(settings, Context(device, torch.float32, torch.Generator(device), on_progress, cancelled))
    with devices.reproducible(), _readable_memory_errors():
        if output is None:
            return job.run(Path(photo), None)
        from portrait_backend.outputs import check_turntable

        check_turntable(settings.output)
        with job_folder(Path(output)) as folder:
            result = job.run(Path(photo), folder)
        return replace(result, output=Path(output))


def check_stages(settings: Settings) -> None:
    """Raise PortraitDiffusionError ``stage-unavailable`` for stages that this version doesn't have."""
    for stage in settings.stages:
        if stage not in AVAILABLE_STAGES:
            raise PortraitDiffusionError(
                "stage-unavailable",
                f"the stage {stage!r} is not part of version {__version__}, it comes in a later one",
                f"Run with --stages {','.join(AVAILABLE_STAGES)}",
            )


@dataclass
class _Job:
    settings: Settings
    context: Context
    timings: list[dict[str, Any]] = field(default_factory=list)

    def run(self, photo: Path, folder: Path | None) -> Result:
        from portrait_backend.mesh.build import build_mesh
        from portrait_backend.portrait.align import prepare_portrait
        from portrait_backend.prior import create_prior

        started, clock = datetime.now(UTC), time.perf_counter()
        with self.stage("portrait") as context:
            portrait = prepare_portrait(photo, context)
        with self.stage("prior") as context:
            head = create_prior(self.settings.prior.provider).initialise(portrait, self.settings.prior, context)
        with self.stage("mesh") as context:
            mesh = build_mesh(head, portrait, self.settings.mesh, context)
        identity = self.identity(portrait)
        if folder is not None:
            self.write(folder, head, mesh, identity)
        seconds = round(time.perf_counter() - clock, 2)
        record = {**identity, "started": started.isoformat(timespec="seconds"), "seconds": seconds, **self.circumstances(portrait)}
        if folder is not None:
            record = write_record(folder, record)
        return Result(portrait, head, mesh, record, None)

    def write(self, folder: Path, head: Head, mesh: HeadMesh, identity: dict[str, Any]) -> None:
        """Write everything but the record into `folder`."""
        from portrait_backend.mesh.export import export_mesh
        from portrait_backend.outputs import write_turntable, write_views

        settings = self.settings.output
        export_mesh(mesh, folder / f"head.{settings.format}", extras=identity)
        head.save(folder / "head.safetensors")
        with self.stage("views") as context:
            write_views(head, folder / "views", settings, context)
        if settings.turntable != "none":
            with self.stage("turntable") as context:
                write_turntable(head, folder / f"turntable.{settings.turntable}", settings, context)

    @contextmanager
    def stage(self, name: str) -> Iterator[Context]:
        """Yield the stage's context (its own generator) and note the stage's seconds and peak memory."""
        device = self.context.device
        devices.reset_gpu_peak(device)
        start = time.perf_counter()
        yield replace(self.context, stage=name, generator=devices.stage_generator(self.settings.seed, name, device))
        self.timings.append(
            {
                "stage": name,
                "seconds": round(time.perf_counter() - start, 2),
                "peak_memory_mb": devices.peak_memory_mb(),
                "peak_gpu_memory_mb": devices.peak_gpu_memory_mb(device),
            }
        )

    def identity(self, portrait: Portrait) -> dict[str, Any]:
        """Return what decides the result; the same for every run of the same job, so it may be written into the mesh file."""
        return {
            "generator": f"portrait-diffusion {__version__}",
            "photo": {"name": portrait.source, "sha256": portrait.sha256},
            "seed": self.settings.seed,
            "settings": to_dict(self.settings),
            "weights": {weight.name: weight.sha256 for weight in starter_weights()},
        }

    def circumstances(self, portrait: Portrait) -> dict[str, Any]:
        """Return what differs from run to run or machine to machine."""
        return {
            "pose": {"yaw": round(portrait.yaw, 2), "pitch": round(portrait.pitch, 2), "roll": round(portrait.roll, 2)},
            "warnings": list(portrait.warnings),
            "stages": self.timings,
            "device": devices.describe_device(self.context.device),
            "versions": versions(),
        }


def versions() -> dict[str, str]:
    """Return the versions of Python, the system and the packages that touch the result."""
    found = {"portrait-diffusion": __version__, "python": platform.python_version(), "system": platform.platform()}
    for name in RECORDED_PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


@contextmanager
def _readable_memory_errors() -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and CPU_ALLOCATOR not in str(error):
            raise
        raise PortraitDiffusionError(
            "out-of-memory",
            f"the memory was not enough ({str(error).splitlines()[0] if str(error) else 'allocation failed'})",
            "Close other programs, or try --preset draft or a smaller --mesh-resolution and --texture-size",
            retryable=True,
        ) from error
