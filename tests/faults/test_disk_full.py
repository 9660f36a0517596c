"""A full disk, at every point where something is written: said in one line, nothing half-written, what was there stays."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import portrait_backend
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import MeshSettings, OutputSettings, Settings
from tests.cli import fake_parts
from tests.faults.tmpfs import fill

PAGE = 4096
"""What a tmpfs gives away at once: leaving one page more each time meets every write."""


def used(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def content(folder: Path) -> dict[str, bytes]:
    """Return what is in a finished head, without the times in its record."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "job.json"
    }


class Work:
    """A head that is quickly made: its photo, its settings, what is in it, its finished stages."""

    def __init__(self, folder: Path, kind: str, turntable: str = "gif") -> None:
        self.photo, self.whole, self.stages = folder / "someone.png", folder / "whole", folder / "stages"
        self.photo.write_bytes(b"photo")
        output = OutputSettings(
            format=kind, view_size=64, turntable=turntable, turntable_frames=4, turntable_size=64, separate_texture=True
        )  # type: ignore[arg-type]
        self.settings = Settings(mesh=MeshSettings(resolution=64, faces=1000, texture_size=256), output=output)
        self.make(self.whole, self.stages)
        self.content = content(self.whole)

    def make(self, output: Path, stages: Path) -> None:
        portrait_backend.generate(self.photo, self.settings, output=output, checkpoints=stages)

    def fails(self, disk: Path, stages: Path, leave: int) -> bool:
        """Make it with `leave` bytes left on the disk; tell whether they were too few."""
        ballast = fill(disk, leave)
        try:
            self.make(disk / "out", stages)
        except PortraitDiffusionError as error:
            assert error.code == "disk-full" and error.retryable, f"{leave} bytes left: {error}"
            assert {path.name for path in disk.iterdir()} <= {"ballast", "stages"}, "nothing half-written"
            assert not [path for path in disk.glob("stages/*") if ".part" in path.name]
            return True
        finally:
            ballast.unlink()
        assert content(disk / "out") == self.content, f"{leave} bytes left"
        return False


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "turntable"), [("glb", "gif"), ("obj", "none"), ("usd", "none"), ("ply", "mp4")])
def test_with_any_space_left_for_the_head(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, turntable: str) -> None:
    if turntable == "mp4":
        pytest.importorskip("imageio_ffmpeg")
    fake_parts.install(monkeypatch)
    work = Work(tmp_path, kind, turntable)
    sizes = range(0, used(work.whole) + 4 * PAGE, PAGE)
    failed = []
    for leave in sizes:
        failed.append(work.fails(disk, work.stages, leave))
        shutil.rmtree(disk / "out", ignore_errors=True)
    assert failed == sorted(failed, reverse=True) and failed.count(True) > 10 and not failed[-1]
    print(f"{kind}, {turntable}: {failed.count(True)} of {len(sizes)} runs met a full disk")


@pytest.mark.slow
def test_with_any_space_left_for_the_finished_stages(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_parts.install(monkeypatch)
    work = Work(tmp_path, "glb")
    need = used(work.stages) + used(work.whole)
    sizes = range(0, need + PAGE, need // 20)
    failed = 0
    for leave in sizes:
        failed += work.fails(disk, disk / "stages", leave)
        work.make(disk / "out", disk / "stages")  # goes on once there is space
        assert content(disk / "out") == work.content
        for folder in ("out", "stages"):
            shutil.rmtree(disk / folder)
    assert failed > 10
    print(f"{failed} of {len(sizes)} runs met a full disk")
