"""The output folder appears complete or not at all, and never at the cost of somebody's files."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from portrait_backend.job_folder import job_folder, read_record, write_record
from portrait_shared.errors import PortraitDiffusionError


def make_job(target: Path, content: str = "one") -> None:
    with job_folder(target) as folder:
        (folder / "views").mkdir()
        (folder / "views/front.png").write_text(content)
        write_record(folder, {"seed": 3})


def refusal(target: Path) -> str:
    with pytest.raises(PortraitDiffusionError) as caught, job_folder(target):
        raise AssertionError("the block must not run")
    return caught.value.code


def test_new_folder_with_its_parents(tmp_path: Path) -> None:
    make_job(tmp_path / "a/b/out")
    record = read_record(tmp_path / "a/b/out")
    assert record is not None and record["seed"] == 3 and record["files"] == ["views/front.png"]
    assert [p.name for p in (tmp_path / "a/b").iterdir()] == ["out"]


def test_the_target_is_untouched_until_the_end(tmp_path: Path) -> None:
    target = tmp_path / "out"
    make_job(target, "old")
    with job_folder(target) as folder:
        (folder / "head.glb").write_text("new")
        assert (target / "views/front.png").read_text() == "old"
        write_record(folder, {})
    assert sorted(p.name for p in target.iterdir()) == ["head.glb", "job.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_after_a_failure(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), job_folder(tmp_path / "a/b/out") as folder:
        (folder / "half").write_text("written")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_the_earlier_job(tmp_path: Path) -> None:
    make_job(tmp_path / "out", "old")
    with pytest.raises(ValueError, match="no"), job_folder(tmp_path / "out"):
        raise ValueError("no")
    assert (tmp_path / "out/views/front.png").read_text() == "old"


def test_an_empty_folder_and_desktop_litter_are_fine(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    make_job(tmp_path / "out")
    (tmp_path / "out/.DS_Store").write_text("")
    make_job(tmp_path / "out", "two")
    assert (tmp_path / "out/views/front.png").read_text() == "two"


def test_refuses_a_folder_with_anything_else_in_it(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    assert refusal(tmp_path / "mine") == "output-not-empty"
    make_job(tmp_path / "out")
    (tmp_path / "out/views/sculpt.blend").write_text("an evening")
    assert refusal(tmp_path / "out") == "output-not-empty"
    assert (tmp_path / "mine/thesis.txt").exists() and (tmp_path / "out/views/sculpt.blend").exists()


def test_refuses_another_programs_job_json(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/job.json").write_text('{"application": "something else", "files": []}')
    assert refusal(tmp_path / "out") == "output-not-empty"


def test_files_that_arrive_while_the_job_runs_are_kept(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(PortraitDiffusionError, match="not from an earlier run"), job_folder(target):
        target.mkdir()
        (target / "note.txt").write_text("hello")
    assert [p.name for p in target.iterdir()] == ["note.txt"] and list(tmp_path.iterdir()) == [target]


def test_refuses_a_file_and_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    assert refusal(tmp_path / "file") == "output-is-file"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").unlink()
    assert refusal(Path()) == "output-in-use"


def test_a_parent_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert refusal(tmp_path / "file/out") == "output-not-writable"


def test_a_full_disk_has_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(PortraitDiffusionError) as caught, job_folder(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.code == "disk-full" and list(tmp_path.iterdir()) == []


def test_the_old_job_returns_if_the_swap_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    make_job(target, "old")
    real = Path.rename

    def rename(self: Path, to: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError(errno.EBUSY, "busy")
        return real(self, to)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="busy"):
        make_job(target, "new")
    assert (target / "views/front.png").read_text() == "old" and list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs symbolic links")
def test_a_link_keeps_pointing_at_the_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    make_job(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real/job.json").exists()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names open files by /proc")
def test_everything_is_on_the_disk_before_the_folder_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut at any moment there is the whole folder or none."""
    events: list[str] = []
    sync, rename = os.fsync, Path.rename

    def fsync(descriptor: int) -> None:
        events.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        sync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        events.append(f"to {target}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", renamed)
    make_job(tmp_path / "out")
    at = events.index(f"to {tmp_path / 'out'}")
    before = [Path(event).name for event in events[:at]]
    assert {"front.png", "job.json", "views"} <= set(before) and before[-1].startswith(".out.partial-")
    assert events[at + 1 :] == [str(tmp_path)]
