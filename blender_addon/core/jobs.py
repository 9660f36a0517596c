"""What this Blender knows of its jobs: the backend's word, the folder on this disk, and what the panel shows meanwhile.

Belongs to the main thread. Nothing in here holds Blender data: a scene is a name, an object is a name.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portrait_shared.errors import PortraitDiffusionError

from .head_data import MESH, HeadData

if TYPE_CHECKING:
    from portrait_shared.protocol import ErrorInfo, JobInfo, JobProgress

NOTE = "local.json"
INPUT = "input"
"""Folder of the photo in a job's folder: the backend writes the photo's own name into its records."""
TERMINAL = frozenset({"cancelled", "failed", "completed"})
STAGE_TITLES = {
    "portrait": "Reading the photo",
    "prior": "Stage 1: first head",
    "restoration": "Stage 2: restoration",
    "refinement": "Stage 3: refinement",
    "mesh": "Mesh and texture",
    "views": "Pictures",
    "turntable": "Film",
}


@dataclass
class Job:
    """One job. state: the backend's, or "sending" before its first answer.

    here: its head lies on this disk; wanted: import it when it is done; head: fetched and read, waiting to be imported.
    """

    id: str
    name: str
    folder: Path
    state: str = "sending"
    created: float = field(default_factory=time.time)
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    stage: str = ""
    step: int = 0
    steps: int = 0
    eta: float | None = None
    eta_at: float = 0.0
    error: ErrorInfo | PortraitDiffusionError | None = None
    warnings: tuple[str, ...] = ()
    here: bool = False
    on_backend: bool = False
    parent: str | None = None
    wanted: bool = False
    fetching: bool = False
    scene: str = ""
    head: HeadData | None = None
    started_at: float | None = None

    @property
    def active(self) -> bool:
        """Whether it is still under way."""
        return self.state not in TERMINAL

    @property
    def fraction(self) -> float:
        """How much of the current stage is done, 0 to 1."""
        return min(1.0, self.step / self.steps) if self.steps > 0 else 0.0

    @property
    def title(self) -> str:
        """What it is doing, for people."""
        if self.state == "sending":
            return "Sending the photo"
        if self.state == "queued":
            return "Waiting for its turn"
        if self.state == "cancelling":
            return "Cancelling"
        return STAGE_TITLES.get(self.stage, self.stage.replace("_", " ").capitalize()) or "Starting"

    def seconds_left(self, now: float) -> float | None:
        """Return the estimate, counted down since it came; None where there is none."""
        return None if self.eta is None else max(0.0, self.eta - (now - self.eta_at))

    def take(self, info: JobInfo, now: float) -> None:
        """Take the backend's word."""
        self.name, self.state, self.created, self.seed = info.name or self.name, info.state, info.created, info.seed
        self.settings, self.error, self.warnings, self.parent = info.settings or self.settings, info.error, info.warnings, info.parent
        self.on_backend = True
        if info.state == "running":
            self.stage, self.step, self.steps = info.stage, info.step, info.steps
            self.eta, self.eta_at = info.eta, now

    def advance(self, progress: JobProgress, now: float) -> None:
        """Take a progress report; one that arrives after the end changes nothing."""
        if self.state in TERMINAL or self.state == "cancelling":
            return
        self.state = "running"
        self.stage, self.step, self.steps = progress.stage, progress.step, progress.steps
        self.eta, self.eta_at = progress.eta, now


class Jobs:
    """All known jobs, and which one the panel follows."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._jobs: dict[str, Job] = {}
        self.followed: str | None = None

    def __iter__(self) -> Iterator[Job]:
        """Yield the jobs, newest first."""
        return iter(sorted(self._jobs.values(), key=lambda job: -job.created))

    def __len__(self) -> int:
        return len(self._jobs)

    def get(self, id: str | None) -> Job | None:
        """Return a job, None if it is not known."""
        return self._jobs.get(id) if id else None

    def add(self, job: Job) -> Job:
        """Add a job."""
        self._jobs[job.id] = job
        return job

    def forget(self, id: str) -> None:
        """Drop a job from the list."""
        self._jobs.pop(id, None)
        if self.followed == id:
            self.followed = None

    def known(self, info: JobInfo, now: float) -> Job:
        """Return the job of the backend's word, made if it was not known."""
        job = self._jobs.get(info.id)
        if job is None:
            job = self.add(Job(info.id, info.name, self.root / info.id, here=has_head(self.root / info.id)))
        job.take(info, now)
        return job

    @property
    def current(self) -> Job | None:
        """The job that the panel follows."""
        return self.get(self.followed)

    @property
    def active(self) -> list[Job]:
        """Jobs under way, newest first."""
        return [job for job in self if job.active]


def has_head(folder: Path) -> bool:
    """Return whether a folder holds a fetched head (files appear there complete or not at all)."""
    return (folder / MESH).is_file()


def write_note(job: Job) -> None:
    """Keep what History shows of a job when no backend runs."""
    job.folder.mkdir(parents=True, exist_ok=True)
    note = {"id": job.id, "name": job.name, "created": job.created, "seed": job.seed, "settings": job.settings}
    part = job.folder / (NOTE + ".part")
    part.write_text(json.dumps(note), encoding="utf-8")
    part.replace(job.folder / NOTE)


def read_notes(root: Path) -> list[Job]:
    """Return the finished jobs whose head lies below `root` (runs in the link's thread)."""
    found = []
    for path in sorted(root.glob(f"*/{NOTE}")):
        try:
            note = json.loads(path.read_text(encoding="utf-8"))
            job = Job(str(note["id"]), str(note["name"]), path.parent, "completed", float(note["created"]), int(note["seed"]))
            job.settings = dict(note["settings"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # half of a folder that was being deleted
        if job.id == path.parent.name and has_head(path.parent):
            job.here = True
            found.append(job)
    return found


def remove_folder(root: Path, id: str) -> None:
    """Delete a job's folder below `root`."""
    folder = root / id
    if id and folder.parent == root and folder.is_dir():
        shutil.rmtree(folder)


def photo_in(folder: Path) -> Path | None:
    """Return the photo that was kept at submission."""
    return next(iter(sorted((folder / INPUT).glob("*"))), None)


def time_left(seconds: float) -> str:
    """Return "about 40 s", "about 3 min"."""
    if seconds < 90:
        return f"about {max(1, round(seconds / 5) * 5 if seconds > 10 else round(seconds))} s left"
    return f"about {round(seconds / 60)} min left"
