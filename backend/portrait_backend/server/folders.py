"""Where a server's data lies: the store, the keys, and one folder per job.

``jobs/ID/photo`` the file that was sent; ``checkpoints/`` the finished stages; ``geometry/`` of a re-texture job, the
stages it keeps; ``result/`` what the owner gets. Every one of them appears complete or not at all.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from portrait_backend.files import atomic_path
from portrait_shared.protocol import JOB_ID


class JobFolder:
    """The folder of one job."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.photo = path / "photo"
        self.checkpoints = path / "checkpoints"
        self.geometry = path / "geometry"
        self.result = path / "result"

    def create(self, photo: bytes) -> None:
        """Make the folder with the photo in it; what an interrupted submission left there is replaced."""
        self.remove()
        self.path.mkdir(parents=True)
        with atomic_path(self.photo) as temporary:
            temporary.write_bytes(photo)

    def keep_geometry(self, parent: JobFolder) -> None:
        """Take over the finished stages of another job, which may be deleted afterwards."""
        source = parent.geometry if parent.geometry.is_dir() else parent.checkpoints
        self.geometry.mkdir()
        for file in source.iterdir():
            if file.is_file() and not file.name.startswith("."):
                _link(file, self.geometry / file.name)

    def keep_only(self, stages: set[str]) -> None:
        """Remove the finished stages of a completed job but these; a re-texture job has its geometry apart and needs none."""
        kept = set() if self.geometry.is_dir() else stages
        for path in self.checkpoints.glob("*"):
            if path.name.partition(".")[0] not in kept:
                path.unlink(missing_ok=True)

    def size(self) -> int:
        """Return the bytes of all files in the folder."""
        return sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())

    def remove_litter(self) -> None:
        """Remove what a killed worker was just writing: everything hidden."""
        for path in [*self.path.glob(".*"), *self.path.glob("*/.*")]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder and everything in it."""
        shutil.rmtree(self.path, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


class DataFolder:
    """The folder of a server."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.jobs = path / "jobs"
        self.jobs.mkdir(parents=True, exist_ok=True)
        if os.name == "posix":
            path.chmod(0o700)

    @property
    def store(self) -> Path:
        """The database."""
        return self.path / "jobs.sqlite"

    @property
    def keys(self) -> Path:
        """The folder of the keys."""
        return self.path / "keys"

    def job(self, job: str) -> JobFolder:
        """Return the folder of a job; the id must be one (32 hexadecimal digits)."""
        if not JOB_ID.fullmatch(job):
            raise ValueError(f"{job!r} is no job id")
        return JobFolder(self.jobs / job)

    def remove_strays(self, known: set[str]) -> None:
        """Remove job folders that no job has: an interrupted submission or deletion."""
        for path in self.jobs.iterdir():
            if path.name not in known and JOB_ID.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)
