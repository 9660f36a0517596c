"""Build the Blender extension: dist/portrait_diffusion-<version>-<platform>.zip, one zip per platform.

Each zip holds the add-on, the project's own wheel (the very file that *Install backend* installs later) and one
pyzmq wheel per Python version of Blender. The same sources, wheels and build tools give the same bytes.

    python build_addon.py                      all platforms; pyzmq comes from the package index once, then from build/wheels
    python build_addon.py --platform current   only the platform of this machine
    python build_addon.py --wheels DIR         take the pyzmq wheels from DIR, download nothing
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.metadata
import importlib.util
import os
import platform as host
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ADDON = ROOT / "blender_addon"
WHEEL_CACHE = ROOT / "build/wheels"
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time stamp of every file in every archive: the earliest that a zip can hold."""
PYTHONS = ("3.11", "3.13", "3.14")
"""Blender 4.2 to 5.0 runs on 3.11, later ones on 3.13 and 3.14 (no Blender was released with 3.12)."""
STORED = (".whl", ".png", ".jpg", ".safetensors")
"""Compressing these again gains nothing (fp16 weights: 7 %) and costs seconds."""


@dataclass(frozen=True)
class Platform:
    """A platform by Blender's name, the wheel platform tags that pip may take for it, and what their file names look like."""

    name: str
    tags: tuple[str, ...]
    pattern: str


PLATFORMS = (
    Platform("linux-x64", ("manylinux_2_28_x86_64", "manylinux_2_26_x86_64", "manylinux2014_x86_64"), r"manylinux\S*_x86_64"),
    Platform("windows-x64", ("win_amd64",), "win_amd64"),
    Platform("macos-arm64", ("macosx_11_0_arm64", "macosx_11_0_universal2"), r"macosx_\S*(?:arm64|universal2)"),
)
"""manylinux_2_28 and macOS 11 are what Blender 4.2 itself asks for."""


class BuildError(Exception):
    """One line about why no extension could be built."""


def main(arguments: list[str] | None = None) -> int:
    """Build, validate and list the zips; return the exit code."""
    parser = argparse.ArgumentParser(description="Build the Blender extension, one zip per platform.")
    names = [p.name for p in PLATFORMS]
    parser.add_argument("--platform", action="append", choices=["all", "current", *names], help="may be given more than once; default: all")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="take the pyzmq wheels from this folder and download nothing")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", metavar="DIR", help="where the zips go (default: dist)")
    given = parser.parse_args(arguments)
    try:
        for path in build(chosen_platforms(given.platform or ["all"]), given.output, given.wheels):
            print(f"{path.stat().st_size / 1e6:6.1f} MB  {path}")
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def chosen_platforms(names: Iterable[str]) -> list[Platform]:
    """Return the platforms of the command line's names, in the order of PLATFORMS."""
    wanted = set(names)
    if "current" in wanted:
        wanted.add(current_platform())
    return [p for p in PLATFORMS if p.name in wanted or "all" in wanted]


def current_platform() -> str:
    """Return Blender's name of this machine's platform."""
    system = {"linux": "linux", "windows": "windows", "darwin": "macos"}.get(host.system().lower(), "")
    machine = {"x86_64": "x64", "amd64": "x64", "arm64": "arm64", "aarch64": "arm64"}.get(host.machine().lower(), "")
    name = f"{system}-{machine}"
    if name not in {p.name for p in PLATFORMS}:
        raise BuildError(f"there is no extension for {host.system()} {host.machine()}; give --platform")
    return name


def build(platforms: Iterable[Platform], output: Path, wheels: Path | None = None) -> list[Path]:
    """Build and validate one zip per platform into `output` and return their paths; `wheels`: take pyzmq from there only."""
    made = []
    with tempfile.TemporaryDirectory() as scratch:
        project = build_project_wheel(Path(scratch) / "project")
        for platform in platforms:
            content = addon_files()
            content["constraints.txt"] = (ROOT / "constraints.txt").read_bytes()
            content["LICENSE"] = (ROOT / "LICENSE").read_bytes()
            bundled = {project.name: project.read_bytes(), **pyzmq_wheels(platform, Path(scratch) / platform.name, wheels)}
            content.update({f"wheels/{name}": data for name, data in bundled.items()})
            content["blender_manifest.toml"] = manifest(platform, bundled).encode()
            path = Path(scratch) / f"portrait_diffusion-{version()}-{platform.name}.zip"
            write_zip(path, content)
            validate(path)
            output.mkdir(parents=True, exist_ok=True)
            made.append(Path(shutil.move(path, output / path.name)))
    return made


def version() -> str:
    """Return the version of the project (of the wheel and of the extension)."""
    source = (ROOT / "backend/portrait_backend/__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    if not found:
        raise BuildError("backend/portrait_backend/__init__.py has no __version__")
    return found[1]


def addon_files() -> dict[str, bytes]:
    """Return {path in the zip: content} of the add-on's own files."""
    files = (p for p in sorted(ADDON.rglob("*")) if p.is_file() and p.suffix in (".py", ".png") and "__pycache__" not in p.parts)
    return {p.relative_to(ADDON).as_posix(): p.read_bytes() for p in files}


def manifest(platform: Platform, wheels: Iterable[str]) -> str:
    """Return the extension's manifest with its version, platform and wheels filled in."""
    text = (ADDON / "blender_manifest.toml").read_text(encoding="utf-8")
    lines = "".join(f'    "./wheels/{name}",\n' for name in sorted(wheels))
    filled = {"@VERSION@": version(), "@PLATFORM@": platform.name, "@WHEELS@": lines.rstrip("\n")}
    for mark, value in filled.items():
        if text.count(mark) != 1:
            raise BuildError(f"blender_addon/blender_manifest.toml must hold {mark} once")
        text = text.replace(mark, value)
    return text


# --- the project's wheel


def build_project_wheel(folder: Path) -> Path:
    """Build portrait_diffusion-<version>-py3-none-any.whl into `folder`, from a copy of the sources, and return its path."""
    sources, raw = folder / "sources", folder / "raw"
    sources.mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources / name)
    for name in ("backend", "shared"):  # a copy: an old build/lib or egg-info would put removed modules into the wheel
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "*.part"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(raw)]
    if has_setuptools():
        command.append("--no-build-isolation")  # works offline, too
    _run([*command, str(sources)], "the project's wheel could not be built")
    (built,) = raw.glob("portrait_diffusion-*.whl")
    path = folder / built.name
    write_zip(path, read_zip(built))
    return path


def has_setuptools() -> bool:
    """Return whether this Python has the setuptools that pyproject.toml asks for."""
    try:
        return int(importlib.metadata.version("setuptools").split(".")[0]) >= 77
    except importlib.metadata.PackageNotFoundError:
        return False


# --- pyzmq


def pyzmq_wheels(platform: Platform, scratch: Path, wheels: Path | None) -> dict[str, bytes]:
    """Return {file name: content} of one exact-tag pyzmq wheel per Python version of Blender."""
    found = {}
    for python in PYTHONS:
        path = find_pyzmq(platform, python, wheels or WHEEL_CACHE)
        if path is None and wheels is not None:
            raise BuildError(f"{wheels} holds no pyzmq {pyzmq_version()} wheel for {platform.name}, Python {python}")
        if path is None:
            path = download_pyzmq(platform, python, scratch)
        name, data = exact_tag(path, "cp" + python.replace(".", ""))
        found[name] = data
    return found


def pyzmq_version() -> str:
    """Return the version that constraints.txt pins: the one the backend runs with."""
    found = re.search(r"^pyzmq==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    if not found:
        raise BuildError("constraints.txt doesn't pin pyzmq")
    return found[1]


def find_pyzmq(platform: Platform, python: str, folder: Path) -> Path | None:
    """Return a wheel in `folder` that runs on this platform and Python: the exact one, else one for the stable ABI."""
    wanted = int(python.replace(".", ""))
    name = re.compile(rf"pyzmq-{re.escape(pyzmq_version())}-cp(\d+)-(cp\d+|abi3)-{platform.pattern}\.whl")
    found = {(m[2], int(m[1])): path for path in sorted(folder.glob("pyzmq-*.whl")) if (m := name.fullmatch(path.name))}
    stable = [path for (abi, oldest), path in sorted(found.items()) if abi == "abi3" and 300 <= oldest <= wanted]
    return found.get((f"cp{wanted}", wanted)) or (stable[-1] if stable else None)


def download_pyzmq(platform: Platform, python: str, scratch: Path) -> Path:
    """Download the wheel into WHEEL_CACHE and return its path."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--implementation", "cp"]
    command += ["--python-version", python, "--dest", str(scratch / python)]
    for tag in platform.tags:
        command += ["--platform", tag]
    _run([*command, f"pyzmq=={pyzmq_version()}"], f"no pyzmq for {platform.name}, Python {python}")
    (got,) = (scratch / python).glob("pyzmq-*.whl")
    WHEEL_CACHE.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(got, WHEEL_CACHE / got.name))


def exact_tag(path: Path, python: str) -> tuple[str, bytes]:
    """Return (file name, content) of the wheel tagged `python`-`python`.

    Blender refuses an extension that mixes exact and stable-ABI (abi3) wheels. A stable-ABI wheel runs on every
    later Python, so it may carry the exact tag of one of them; only its WHEEL and RECORD change.
    """
    distribution, number, _, abi, platform = path.name.removesuffix(".whl").split("-")
    if abi != "abi3":
        return path.name, path.read_bytes()
    content = read_zip(path)
    info = f"{distribution}-{number}.dist-info"
    lines = content[f"{info}/WHEEL"].decode().splitlines()
    tags = [f"Tag: {python}-{python}-{one}" for one in platform.split(".")]
    content[f"{info}/WHEEL"] = ("\n".join([*(line for line in lines if line and not line.startswith("Tag:")), *tags]) + "\n").encode()
    content[f"{info}/RECORD"] = record(content, f"{info}/RECORD").encode()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / f"{distribution}-{number}-{python}-{python}-{platform}.whl"
        write_zip(target, content)
        return target.name, target.read_bytes()


def record(content: Mapping[str, bytes], own: str) -> str:
    """Return the RECORD of a wheel: path, hash and size of every file (the binary distribution format's)."""
    rows = []
    for name, data in sorted(content.items()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.append(f"{name},sha256={digest},{len(data)}" if name != own else f"{name},,")
    return "\n".join(rows) + "\n"


# --- archives


def read_zip(path: Path) -> dict[str, bytes]:
    """Return {name: content} of all files in a zip."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


def write_zip(path: Path, content: Mapping[str, bytes]) -> None:
    """Write a zip whose bytes depend on nothing but `content`: sorted, one time stamp, one mode; a wheel's RECORD comes last."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(content, key=lambda n: (n.endswith(".dist-info/RECORD"), n)):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.create_system = 3  # Unix, wherever it is built
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            entry.compress_type = zipfile.ZIP_STORED if name.endswith(STORED) else zipfile.ZIP_DEFLATED
            archive.writestr(entry, content[name], compresslevel=9)


# --- Blender's own check


def validate(path: Path) -> None:
    """Let Blender's extension tool check a zip; says so where the tool is not there."""
    tool = extension_tool()
    if tool is None:
        print(f"not validated: {path.name} (Blender's extension tool comes with `pip install bpy`)")
        return
    _run([sys.executable, str(tool), "validate", str(path)], f"Blender's extension tool refuses {path.name}")


def extension_tool() -> Path | None:
    """Return the path of blender_ext.py of an installed bpy module (which is not imported), None if there is none."""
    spec = importlib.util.find_spec("bpy")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return next(_tools(folders), None)


def _tools(folders: Iterable[str]) -> Iterator[Path]:
    for folder in folders:
        yield from sorted(Path(folder).glob("*/scripts/addons_core/bl_pkg/cli/blender_ext.py"))


def _run(command: list[str], problem: str) -> None:
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "315532800", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise BuildError(f"{problem}: {lines[-1] if lines else f'exit code {done.returncode}'}")


if __name__ == "__main__":
    sys.exit(main())
