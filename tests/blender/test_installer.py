"""The installation, really run: a stub of our wheel and of a dependency in a folder, no network, an environment of its own."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from blender_addon.core.find_python import find_python
from blender_addon.core.folders import Folders
from blender_addon.core.installer import Installer, Options, clean_environment, examine, uninstall
from blender_addon.core.log import Log, last_lines
from build_addon import record, write_zip
from portrait_shared.errors import PortraitDiffusionError

DOCTOR = """
import json, sys
import tiny_dependency
assert sys.argv[1:] == ["doctor", "--json"]
print(json.dumps({"version": "VERSION", "python": "3", "packages": {"tiny": {"version": "1", "error": "ERROR"}}, "problems": PROBLEMS}))
"""


def wheel(folder: Path, name: str, number: str, files: dict[str, str], requires: str = "") -> Path:
    """Write a real, tiny wheel."""
    info = f"{name}-{number}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {number}\n"
    content = {path: text.encode() for path, text in files.items()}
    content[f"{info}/METADATA"] = (metadata + (f"Requires-Dist: {requires}\n" if requires else "")).encode()
    content[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    content[f"{info}/RECORD"] = b""
    content[f"{info}/RECORD"] = record(content, f"{info}/RECORD").encode()
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{number}-py3-none-any.whl"
    write_zip(path, content)
    return path


def stub(folder: Path, number: str = "0.0.1", error: str = "", problems: str = "[]") -> Path:
    source = DOCTOR.replace("VERSION", number).replace("ERROR", error).replace("PROBLEMS", problems)
    files = {"portrait_backend/__init__.py": "", "portrait_backend/__main__.py": source}
    return wheel(folder, "portrait_diffusion", number, files, "tiny-dependency")


def dependency(folder: Path) -> Path:
    return wheel(folder, "tiny_dependency", "1.0", {"tiny_dependency.py": ""})


class Bench:
    def __init__(self, root: Path) -> None:
        self.folders = Folders(root / "user")
        self.log = Log(self.folders.install_log)
        self.installer = Installer(self.folders, self.log)
        self.offline = root / "offline"
        self.offline.mkdir()
        self.constraints = root / "constraints.txt"
        self.constraints.write_text("tiny-dependency==1.0\n")

    def install(self, bundled: Path) -> PortraitDiffusionError | None:
        self.installer.start(Options(bundled, self.constraints, wheel_folder=self.offline))
        self.installer.wait(300)
        assert not self.installer.running
        return self.installer.error


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.slow
def test_the_whole_life_of_an_installation(bench: Bench, tmp_path: Path) -> None:
    bundled = stub(tmp_path / "bundled")
    assert examine(bench.folders, bundled).kind == "absent"

    error = bench.install(bundled)  # the dependency is not in the folder
    assert error is not None and error.code == "install-failed" and "Cannot install" in error.message and "every package" in error.hint
    assert examine(bench.folders, bundled).kind == "incomplete"
    assert any("tiny" in line for line in bench.log.tail(50)), "the log shows what pip said"

    kept = bench.folders.venv / "kept"
    kept.touch()
    dependency(bench.offline)
    assert bench.install(bundled) is None
    assert kept.exists(), "the environment of the first try was used again"
    found = examine(bench.folders, bundled)
    assert (found.kind, found.text) == ("installed", "Version 0.0.1") and not bench.folders.incomplete.exists()
    assert bench.installer.step == "Done" and last_lines(bench.folders.install_log, 1) == ["== Done"]

    other = stub(tmp_path / "other", error="libGL is missing")  # the same version number, other bytes
    assert examine(bench.folders, other).kind == "outdated"
    error = bench.install(other)
    assert error is not None and "libGL is missing" in error.message, "a build that doesn't run is not called installed"
    assert examine(bench.folders, other).kind == "incomplete"

    noted = stub(tmp_path / "noted", problems='[{"what": "2 GB of memory", "do": "buy more"}]')
    assert bench.install(noted) is None
    assert "note: 2 GB of memory; buy more" in bench.log.tail(20)

    bench.folders.jobs.mkdir()
    uninstall(bench.folders)
    assert not bench.folders.backend.exists() and bench.folders.jobs.exists()
    assert examine(bench.folders, bundled).kind == "absent"


@pytest.mark.skipif(os.name != "posix", reason="the stand-in for Python is a shell script")
def test_cancelling_ends_it_within_seconds(bench: Bench, tmp_path: Path) -> None:
    slow = tmp_path / "python3"
    slow.write_text('#!/bin/sh\ncase "$*" in *venv*ensurepip*) echo 3.11; echo x;; *) echo making; exec sleep 60;; esac\n')
    slow.chmod(0o755)
    bench.installer.start(Options(stub(tmp_path / "bundled"), bench.constraints, own_python=str(slow)))
    while "making" not in bench.log.tail(5):
        assert bench.installer.running
        time.sleep(0.02)
    start = time.monotonic()
    bench.installer.cancel()
    bench.installer.wait(30)
    assert time.monotonic() - start < 10
    assert bench.installer.error is not None and bench.installer.error.code == "install-cancelled"
    assert examine(bench.folders, None).kind == "incomplete"


def test_uninstall_removes_only_what_is_ours(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    uninstall(folders)
    folders.backend.mkdir()
    (folders.backend / "thesis.txt").touch()
    with pytest.raises(PortraitDiffusionError) as caught:
        uninstall(folders)
    assert caught.value.code == "not-ours" and (folders.backend / "thesis.txt").exists()


def test_the_environment_of_pip_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/blender/modules")
    monkeypatch.setenv("PYTHONHOME", "/blender/python")
    assert not any(name.startswith("PYTHON") for name in clean_environment()) and "PATH" in clean_environment()
    monkeypatch.setenv("PIP_QUIET", "1")
    assert "PIP_QUIET" not in clean_environment()


def test_which_python(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_python(sys.executable, lambda command: (3, 11)) == [sys.executable], "Blender's own where it fits"
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}" if name in ("python3.11", "python3") else None)
    versions = {sys.executable: (3, 13), "/usr/bin/python3.11": (3, 11), "/usr/bin/python3": (3, 14)}
    assert find_python(sys.executable, lambda command: versions[command[0]]) == ["/usr/bin/python3.11"]
    with pytest.raises(PortraitDiffusionError) as caught:
        find_python(sys.executable, lambda command: None)
    assert caught.value.code == "no-python" and "3.12" in caught.value.hint


def test_this_python_is_found() -> None:
    if sys.version_info[:2] not in ((3, 11), (3, 12)):
        pytest.skip("the backend runs on 3.11 and 3.12")
    assert find_python(sys.executable) == [sys.executable]
