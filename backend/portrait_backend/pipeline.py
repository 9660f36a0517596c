"""The whole job: photo -> Portrait -> Head -> HeadMesh -> output folder, with one progress callback and one cancel point."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from portrait_backend import __version__, devices, stages
from portrait_backend.checkpoints import Checkpoint, Checkpoints, Made
from portrait_backend.context import Context, Progress
from portrait_backend.diffusion.memory import resolved
from portrait_backend.diffusion.sources import Sources, find_sources
from portrait_backend.job_folder import job_folder, write_record
from portrait_backend.models.inventory import starter_weights
from portrait_backend.processes import keeping_memory
from portrait_backend.radiance.cameras import METRES_PER_UNIT, Camera
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import Settings, to_dict, validate

if TYPE_CHECKING:
    from portrait_backend.mesh.types import Field, HeadMesh
    from portrait_backend.mesh.views import ProjectedView
    from portrait_backend.portrait.types import Portrait
    from portrait_backend.radiance.head import Head

log = logging.getLogger(__name__)
PREVIEW_SIZE, PREVIEW_AZIMUTH = 320, 20
"""The picture of the head that is shown while its mesh is made: pixels and degrees."""
CPU_ALLOCATOR = "DefaultCPUAllocator"
"""Torch names it in the plain RuntimeError that stands for "out of memory" on the CPU."""
RECORDED_PACKAGES = (
    "torch", "numpy", "scipy", "pillow", "mediapipe", "opencv-contrib-python", "numba", "PyMCubes", "xatlas", "fast-simplification",
    "safetensors", "diffusers",
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
    *,
    checkpoints: str | Path | None = None,
    geometry: str | Path | None = None,
    source: str | None = None,
    device: str = "auto",
    shows_previews: Callable[[], bool] | None = None,
) -> Result:
    """Make a 3D head from one portrait photo and write it to the folder `output` (None: keep it in memory only).

    The folder appears when everything in it is complete; an earlier job there is replaced. `cancelled` is asked
    at every progress report. Raises PortraitDiffusionError, or Cancelled.

    checkpoints: a folder for finished stages; a job that was interrupted goes on after the last one that was made of the
    same photo, settings, weights and versions, and gives the same bytes as an uninterrupted one. geometry: the checkpoint
    folder of a finished job whose mesh and UVs are kept; only the stages after the shape and the texture run. source: the
    photo's name in the record, if it isn't the file's. device: what the setting "auto" means here. shows_previews: whether
    a preview would be looked at now; stages ask before they make one that costs something.
    """
    settings = validate(settings or Settings())
    stages.check(settings)
    place = devices.choose_device(device if settings.device == "auto" else settings.device)
    sources = find_sources(settings.diffusion, stages.with_networks(settings))
    context = Context(
        place,
        torch.float32,
        torch.Generator(place),
        on_progress,
        cancelled,
        shows_previews=shows_previews,
        diffusion=resolved(settings.diffusion, place),
    )
    for warning in sources.warnings:
        log.warning("%s", warning)
    job = _Job(settings, context, None if checkpoints is None else Checkpoints(Path(checkpoints)), source, sources)
    kept = None if geometry is None else Checkpoints(Path(geometry))
    with devices.reproducible(), keeping_memory(), _readable_memory_errors():
        job.weights(runs_prior=geometry is None)  # what is missing is said before anything is computed
        if output is None:
            return job.run(Path(photo), None, kept)
        from portrait_backend.outputs import check_outputs

        check_outputs(settings.output, settings.stages)
        with job_folder(Path(output)) as folder:
            result = job.run(Path(photo), folder, kept)
        return replace(result, output=Path(output))


@dataclass
class _Job:
    settings: Settings
    context: Context
    checkpoints: Checkpoints | None = None
    source: str | None = None
    sources: Sources = field(default_factory=Sources)
    timings: list[dict[str, Any]] = field(default_factory=list)
    inputs: dict[str, Any] = field(default_factory=dict)
    views: tuple[ProjectedView, ...] = ()
    """The last stage's posed images, which the texture takes."""

    def run(self, photo: Path, folder: Path | None, geometry: Checkpoints | None) -> Result:
        started, clock = datetime.now(UTC), time.perf_counter()
        if self.checkpoints is not None:
            self.inputs = self.first_inputs(photo, geometry)
        portrait, head, mesh = self.from_photo(photo) if geometry is None else self.from_geometry(geometry)
        identity = self.identity(portrait, geometry)
        if folder is not None:
            self.write(folder, head, mesh, identity)
            self.write_cameras(folder, photo, portrait)
        seconds = round(time.perf_counter() - clock, 2)
        circumstances = self.circumstances(portrait, head)
        record = {**identity, "started": started.isoformat(timespec="seconds"), "seconds": seconds, **circumstances}
        if folder is not None:
            record = write_record(folder, record)
        return Result(portrait, head, mesh, record, None)

    def from_photo(self, photo: Path) -> tuple[Portrait, Head, HeadMesh]:
        """Run everything."""
        portrait = _there(self.made("portrait", None, lambda context: self.portrait(photo, context)).portrait)
        head, views = self.staged(self.settings.stages, portrait, None)
        mesh = self.made("mesh", self.settings.mesh, lambda context: self.mesh(head, portrait, views, context)).mesh
        return portrait, head, _there(mesh)

    def from_geometry(self, geometry: Checkpoints) -> tuple[Portrait, Head, HeadMesh]:
        """Keep the shape of a finished job: run the stages after it and the texture."""
        shaping = [stage for stage in self.settings.stages if stage in stages.SHAPING]
        portrait, kept = _there(geometry.get("portrait").made.portrait), _there(geometry.get("mesh").made.mesh)
        head = _there(geometry.get(shaping[-1]).made.head).to(self.context.device)
        head, views = self.staged([stage for stage in self.settings.stages if stage not in shaping], portrait, head)
        made = self.made("texture", self.settings.mesh, lambda context: self.texture(kept, head, portrait, views, context))
        return portrait, head, _there(made.mesh)

    def staged(self, names: Sequence[str], portrait: Portrait, head: Head | None) -> tuple[Head, tuple[ProjectedView, ...]]:
        """Run stages on a head (None: the first one makes it); returns the last head and the last stage's posed images."""
        for name in names:
            made = self.made(name, getattr(self.settings, name, None), partial(self.stage_of, name, portrait, head))
            head, self.views = _there(made.head), made.views or self.views
            if self.checkpoints is not None:  # it comes from the disk
                head = head.to(self.context.device)
        return _there(head), self.views

    def stage_of(self, name: str, portrait: Portrait, head: Head | None, context: Context) -> Made:
        made = stages.RUNNERS[name](head, portrait, getattr(self.settings, name, None), context)
        views = getattr(made, "views", None)
        return Made(head=made) if views is None else Made(head=made.head, views=tuple(views))

    def portrait(self, photo: Path, context: Context) -> Made:
        from portrait_backend.portrait.align import prepare_portrait

        portrait = prepare_portrait(photo, context)
        if context.wants_preview():
            context.report(1, 1, portrait.image)
        return Made(portrait=portrait if self.source is None else replace(portrait, source=self.source))

    def mesh(self, head: Head, portrait: Portrait, views: Sequence[ProjectedView], context: Context) -> Made:
        from portrait_backend.mesh.build import build_mesh

        _show(head, context)
        return Made(mesh=build_mesh(self.baked(head, portrait, context), portrait, self.settings.mesh, context, views))

    def baked(self, head: Head, portrait: Portrait, context: Context) -> Field:
        """The head as the texture takes it."""
        from portrait_backend.prior import for_texture

        return for_texture(self.settings.prior.provider, head, portrait, context.generator)

    def texture(self, kept: HeadMesh, head: Head, portrait: Portrait, views: Sequence[ProjectedView], context: Context) -> Made:
        from portrait_backend.mesh.build import surface_of, texture_surface

        _show(head, context)
        source = self.baked(head, portrait, context)
        textured = texture_surface(surface_of(kept), source, portrait, self.settings.mesh.texture_size, context, views)
        return Made(mesh=replace(kept, texture=textured.texture))

    def made(self, name: str, settings: Any, make: Callable[[Context], Made]) -> Made:
        """Return what a stage makes: from its checkpoint if there is one of the same inputs, otherwise by running it."""
        if self.checkpoints is None:
            with self.stage(name) as context:
                return make(context)
        self.inputs = {"before": digest(self.inputs), "stage": name, "settings": None if settings is None else to_dict(settings)}
        if name in stages.DIFFUSED:
            self.inputs |= {"diffusion": to_dict(self.context.diffusion), "sources": self.sources.record}
        found = self.checkpoints.find(name, self.inputs)
        if found is None:
            with self.stage(name) as context:
                fresh = make(context)
            self.checkpoints.save(name, Checkpoint(fresh, self.inputs, self.timings.pop()))
            found = self.checkpoints.get(name)  # what a resumed job would read: both go on with the very same
        else:
            replace(self.context, stage=name).report(1, 1)
        self.timings.append(found.timing)
        return found.made

    def write(self, folder: Path, head: Head, mesh: HeadMesh, identity: dict[str, Any]) -> None:
        """Write everything but the record into `folder`."""
        from portrait_backend.mesh.export import export_mesh
        from portrait_backend.outputs import write_ring, write_turntable, write_views

        settings = self.settings.output
        export_mesh(mesh, folder / f"head.{settings.format}", identity, settings.separate_texture, settings.texture_format)
        head.save(folder / "head.safetensors")
        with self.stage("views") as context:
            write_views(head, folder / "views", settings, context)
        if settings.ring_views:
            write_ring(self.views, folder / "ring")
        if settings.turntable != "none":
            with self.stage("turntable") as context:
                write_turntable(mesh, folder / f"turntable.{settings.turntable}", settings, context)

    def write_cameras(self, folder: Path, photo: Path, portrait: Portrait) -> None:
        """Write the photo's copy, and the cameras of all pictures in `folder` and of the images that the texture was made of."""
        from portrait_backend import camera_file, outputs

        cameras = outputs.view_cameras(self.settings.output)
        if portrait.to_photo is not None and photo.is_file():
            size = outputs.write_photo(photo, folder / "photo.jpg")
            cameras["photo"] = outputs.photo_camera(portrait, *size)
        cameras |= {name: view.camera for name, view in outputs.ring_names(self.views).items()}
        camera_file.write_cameras(cameras, folder / "cameras.json")

    @contextmanager
    def stage(self, name: str) -> Iterator[Context]:
        """Yield the stage's context (its own generator) and note the stage's seconds and peak memory."""
        device = self.context.device
        devices.reset_gpu_peak(device)
        start = time.perf_counter()
        state = None if self.checkpoints is None else self.checkpoints.state(name)
        yield replace(self.context, stage=name, generator=devices.stage_generator(self.settings.seed, name, device), state=state)
        self.timings.append(
            {
                "stage": name,
                "seconds": round(time.perf_counter() - start, 2),
                "peak_memory_mb": devices.peak_memory_mb(),
                "peak_gpu_memory_mb": devices.peak_gpu_memory_mb(device),
            }
        )

    def first_inputs(self, photo: Path, geometry: Checkpoints | None) -> dict[str, Any]:
        """Return what every stage depends on: a checkpoint is only used where all of it is the same."""
        return {
            "photo": _file_sum(photo),
            "source": self.source or photo.name,
            "seed": self.settings.seed,
            "device": devices.describe_device(self.context.device),
            "weights": self.weights(runs_prior=geometry is None),
            "versions": versions(),
            "geometry": None if geometry is None else {stage: geometry.sums(stage) for stage in ("portrait", *stages.SHAPING, "mesh")},
        }

    def weights(self, runs_prior: bool) -> dict[str, str]:
        """Return {name: sha256} of the shipped weights, and of what the prior reads besides, where it runs."""
        from portrait_backend.prior import prior_inputs

        shipped = {weight.name: weight.sha256 for weight in starter_weights()}
        return shipped | (prior_inputs(self.settings.prior) if runs_prior else {})

    def identity(self, portrait: Portrait, geometry: Checkpoints | None) -> dict[str, Any]:
        """Return what decides the result; the same for every run of the same job, so it may be written into the mesh file."""
        kept = {} if geometry is None else {"geometry": geometry.sums("mesh")["mesh"]}
        return {
            "generator": f"portrait-diffusion {__version__}",
            "photo": {"name": portrait.source, "sha256": portrait.sha256},
            "seed": self.settings.seed,
            "settings": to_dict(self.settings),
            "weights": self.weights(runs_prior=geometry is None) | self.sources.record,
            **({"branches": self.sources.branches} if self.sources.branches else {}),
            **kept,
        }

    def circumstances(self, portrait: Portrait, head: Head) -> dict[str, Any]:
        """Return what differs from run to run or machine to machine."""
        return {
            "pose": {"yaw": round(portrait.yaw, 2), "pitch": round(portrait.pitch, 2), "roll": round(portrait.roll, 2)},
            "camera": photo_camera(portrait),
            "warnings": [*portrait.warnings, *head.meta.get("warnings", []), *self.sources.warnings],
            "stages": self.timings,
            "device": devices.describe_device(self.context.device),
            "memory": {"mode": self.context.diffusion.memory, "precision": self.context.diffusion.precision},
            "versions": versions(),
        }


def photo_camera(portrait: Portrait) -> dict[str, Any]:
    """Return the reference camera and where its image lies in the photo, for programs that put the photo behind the head."""
    camera = portrait.camera
    return {
        "world_to_camera": camera.world_to_camera.tolist(),
        "intrinsics": camera.intrinsics.tolist(),
        "size": [camera.width, camera.height],
        "metres_per_unit": METRES_PER_UNIT,
        "crop_to_photo": None if portrait.to_photo is None else portrait.to_photo.tolist(),
        "photo_size": list(portrait.photo_size),
    }


T = TypeVar("T")


def _there(value: T | None) -> T:
    """Return a value that a stage or its checkpoint must have made."""
    if value is None:
        raise ValueError("a stage did not make what it is there for")
    return value


def _show(head: Head, context: Context) -> None:
    """Report a picture of the head as it is now, if anybody looks."""
    if context.wants_preview():
        from portrait_backend.outputs import on_light

        view = head.picture(Camera.orbit(PREVIEW_AZIMUTH, 0, PREVIEW_SIZE).to(context.device))  # its lattice serves the views too
        context.report(0, 1, on_light(view.rgb, view.alpha))


def digest(value: Any) -> str:
    """Return the sha256 of JSON data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _file_sum(path: Path) -> str:
    """Return the sha256 of a file; "" where it can't be read: the portrait stage says why."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""


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
