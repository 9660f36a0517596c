"""The zips: complete, accepted by Blender's own tool, the same bytes every time."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import build_addon
from build_addon import BuildError, Platform, exact_tag, find_pyzmq, record, write_zip

LINUX = next(p for p in build_addon.PLATFORMS if p.name == "linux-x64")


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def small_wheel(folder: Path, tags: str) -> Path:
    """Return a pyzmq wheel of the pinned version with nothing in it but its description."""
    number = build_addon.pyzmq_version()
    info = f"pyzmq-{number}.dist-info"
    _, _, platform = tags.split("-")
    tag_lines = "".join(f"Tag: {tags.rsplit('-', 1)[0]}-{one}\n" for one in platform.split("."))
    content = {
        "zmq/__init__.py": b"",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: pyzmq\nVersion: {number}\n".encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\n{tag_lines}".encode(),
    }
    content[f"{info}/RECORD"] = b""
    content[f"{info}/RECORD"] = record(content, f"{info}/RECORD").encode()
    path = folder / f"pyzmq-{number}-{tags}.whl"
    write_zip(path, content)
    return path


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """Return a folder with pyzmq wheels for Linux, as the package index has them."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for tags in ("cp311-cp311", "cp312-abi3"):
        small_wheel(folder, f"{tags}-manylinux_2_26_x86_64.manylinux_2_28_x86_64")
    return folder


@pytest.mark.slow
def test_the_same_sources_give_the_same_bytes(wheels: Path, tmp_path: Path) -> None:
    first, second = (build_addon.build([LINUX], tmp_path / name, wheels)[0] for name in ("a", "b"))
    assert hashlib.sha256(first.read_bytes()).digest() == hashlib.sha256(second.read_bytes()).digest()


def test_the_zip_is_complete(extension_zip: Path) -> None:
    files = contents(extension_zip)
    manifest = tomllib.loads(files["blender_manifest.toml"].decode())
    assert manifest["id"] == "portrait_diffusion" and "blender" not in (manifest["id"] + manifest["name"]).lower()
    assert manifest["version"] == build_addon.version() and extension_zip.name.startswith(f"portrait_diffusion-{manifest['version']}-")
    assert set(manifest["permissions"]) == {"network", "files"} and manifest["license"] == ["SPDX:GPL-3.0-or-later"]
    listed = {name.removeprefix("./") for name in manifest["wheels"]}
    assert listed == {name for name in files if name.endswith(".whl")}
    assert {"__init__.py", "constraints.txt", "LICENSE", "core/manager.py"} <= files.keys()
    assert not any("torch" in name or "numpy" in name for name in listed), "only pyzmq and our own wheel are bundled"


def test_one_exact_wheel_per_python(extension_zip: Path) -> None:
    tags = sorted(Path(name).name.split("-")[2:4] for name in contents(extension_zip) if "/pyzmq-" in name)
    assert tags == [["cp311", "cp311"], ["cp313", "cp313"], ["cp314", "cp314"]], "Blender refuses abi3 beside exact tags"


def test_the_bundled_wheel_is_the_whole_backend(extension_zip: Path) -> None:
    files = contents(extension_zip)
    (name,) = (name for name in files if "/portrait_diffusion-" in name)
    with zipfile.ZipFile(io.BytesIO(files[name])) as wheel:
        inside = set(wheel.namelist())
    sources = {p.relative_to(build_addon.ROOT / "backend").as_posix() for p in (build_addon.ROOT / "backend").rglob("*.py")}
    assert sources <= inside and "portrait_shared/client.py" in inside
    weights = {path.name for path in (build_addon.ROOT / "backend/portrait_backend/models/starter").glob("*.safetensors")}
    assert {"prior.safetensors", "codec.safetensors", "denoiser.safetensors"} <= weights
    assert weights <= {Path(name).name for name in inside}, "the weights travel with it"


def test_a_stable_abi_wheel_gets_the_exact_tag(tmp_path: Path) -> None:
    path = small_wheel(tmp_path, "cp312-abi3-win_amd64")
    name, data = exact_tag(path, "cp314")
    assert name == f"pyzmq-{build_addon.pyzmq_version()}-cp314-cp314-win_amd64.whl"
    with zipfile.ZipFile(io.BytesIO(data)) as wheel:
        files = {n: wheel.read(n) for n in wheel.namelist()}
    (own,) = (n for n in files if n.endswith("RECORD"))
    (described,) = (n for n in files if n.endswith("WHEEL"))
    assert b"Tag: cp314-cp314-win_amd64\n" in files[described] and b"abi3" not in files[described]
    assert files[own].decode() == record(files, own), "every file's hash is right"


@pytest.mark.parametrize(
    ("tags", "python", "fits"),
    [
        ("cp311-cp311-manylinux2014_x86_64", "3.11", True),
        ("cp312-abi3-manylinux_2_28_x86_64", "3.14", True),
        ("cp312-abi3-manylinux_2_28_x86_64", "3.11", False),
        ("cp313-cp313-manylinux_2_28_x86_64", "3.14", False),
        ("cp311-cp311-manylinux_2_28_aarch64", "3.11", False),
        ("cp311-cp311-win_amd64", "3.11", False),
    ],
)
def test_which_wheel_fits(tmp_path: Path, tags: str, python: str, fits: bool) -> None:
    path = small_wheel(tmp_path, tags)
    assert find_pyzmq(LINUX, python, tmp_path) == (path if fits else None)


def test_a_missing_wheel_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_addon, "build_project_wheel", lambda folder: small_wheel(tmp_path, "py3-none-any"))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert build_addon.main(["--platform", "linux-x64", "--wheels", str(empty), "--output", str(tmp_path / "out")]) == 2
    assert "Python 3.11" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_refused_zip_is_not_left_behind(wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if build_addon.extension_tool() is None:
        pytest.skip("Blender's extension tool comes with bpy")
    monkeypatch.setattr(build_addon, "build_project_wheel", lambda folder: small_wheel(tmp_path, "py3-none-any"))
    right: Callable[[Platform, dict[str, bytes]], str] = build_addon.manifest
    monkeypatch.setattr(build_addon, "manifest", lambda *a: right(*a).replace("portrait_diffusion", "portrait diffusion"))
    with pytest.raises(BuildError, match="refuses"):
        build_addon.build([LINUX], tmp_path / "out", wheels)
    assert not (tmp_path / "out").exists()


def test_nothing_heavy_is_imported_before_register() -> None:
    code = (
        "import sys; import blender_addon; print([m for m in sys.modules if m.split('.')[0] in ('bpy', 'numpy', 'zmq', 'portrait_shared')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=build_addon.ROOT, check=True)
    assert done.stdout.strip() == "[]"
