"""Look at this installation: versions, devices, weights, optional parts, memory; and say what to do if something is missing."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portrait_backend import __version__
from portrait_backend.models.inventory import starter_weights
from portrait_backend.processes import cores

if TYPE_CHECKING:
    import torch

REQUIRED = {
    "torch": "torch", "numpy": "numpy", "scipy": "scipy", "pillow": "PIL", "safetensors": "safetensors", "mediapipe": "mediapipe",
    "opencv-contrib-python": "cv2", "numba": "numba", "PyMCubes": "mcubes", "xatlas": "xatlas",
    "fast-simplification": "fast_simplification", "typer": "typer", "rich": "rich", "platformdirs": "platformdirs", "pyzmq": "zmq",
    "diffusers": "diffusers",
}  # fmt: skip
SLOW: dict[str, tuple[str, ...]] = {"diffusers": (), "mediapipe": ("python/_framework_bindings*",)}
"""Packages whose import takes a second (it loads torch's compiler, plotting): instead, their native code is loaded alone, and what
they require is looked for."""
OPTIONAL = {
    "pillow-heif": ("pillow_heif", "photos in HEIC format"),
    "imageio-ffmpeg": ("imageio_ffmpeg", "turntables as mp4"),
    "usd-core": ("pxr", "meshes as USD"),
    "accelerate": ("accelerate", "training"),
    "moderngl": ("moderngl", "rendering training sets"),
    "scikit-image": ("skimage", "measuring quality"),
}
MEMORY_NEEDED_GB = 4.0
DEBIAN_PACKAGES = {"libGL.so.1": "libgl1", "libgthread-2.0.so.0": "libglib2.0-0"}
INSTALL = "python3 -m pip install -c constraints.txt ."


def examine() -> dict[str, Any]:
    """Return the report: versions, packages, optional, devices, weights, memory_gb, problems [{what, do}], ready."""
    packages = {name: _package(name, module) for name, module in REQUIRED.items()}
    weights = [{"name": w.name, "size": w.size, "sha256": w.sha256, "state": w.state} for w in starter_weights()]
    memory = total_memory_gb()
    problems = [_package_problem(name, state["error"]) for name, state in packages.items() if state["error"]]
    problems += [_problem(f"the weights {w['name']} are {w['state']}", INSTALL) for w in weights if w["state"] != "ok"]
    if not weights:
        problems.append(_problem("the starter weights are not in this installation", f"{INSTALL} from a complete checkout"))
    if memory is not None and memory < MEMORY_NEEDED_GB:
        problems.append(_problem(f"{memory:.1f} GB of memory, {MEMORY_NEEDED_GB:.0f} GB are needed", "use a machine with more memory"))
    return {
        "version": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": packages,
        "optional": {name: {"present": _present(module), "for": purpose} for name, (module, purpose) in OPTIONAL.items()},
        "devices": _devices(),
        "weights": weights,
        "memory_gb": memory,
        "problems": problems,
        "ready": not problems,
    }


def total_memory_gb() -> float | None:
    """Return the memory this process may use in GB (10^9 bytes): the machine's or its container's; None where unknown."""
    limits = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    group = Path("/sys/fs/cgroup/memory.max")
    if group.is_file() and (text := group.read_text(encoding="ascii").strip()).isdigit():
        limits.append(int(text))
    return round(min(limits) / 1e9, 1) if limits else None


def _package(name: str, module: str) -> dict[str, str]:
    """Import a package and return its version and the reason it can't be imported ("" if it can)."""
    try:
        if module in SLOW:
            _load_partly(name, module)
        else:
            importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: a shared library of the system is missing
        return {"version": "", "error": str(error).splitlines()[0]}
    return {"version": importlib.metadata.version(name), "error": ""}


def _load_partly(name: str, module: str) -> None:
    """Load the native code of a package of `SLOW`; ImportError if it or a package that it requires is missing, OSError if a library is."""
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {module!r}")
    for pattern in SLOW[module]:
        for library in sorted(Path(found.submodule_search_locations[0]).glob(pattern)):
            ctypes.CDLL(str(library))
    for requirement in importlib.metadata.requires(name) or []:
        needed = re.match(r"[\w.-]+", requirement)
        if needed is not None and ";" not in requirement:  # a marker: only somewhere, or for an extra
            importlib.metadata.version(needed[0])


def _package_problem(name: str, error: str) -> dict[str, str]:
    if "cannot open shared object file" in error:
        library = error.split(":")[0]
        package = DEBIAN_PACKAGES.get(library)
        return _problem(f"{name} needs {library}", f"apt-get install {package}" if package else f"install the system library {library}")
    return _problem(f"{name} can't be imported ({error})", INSTALL)


def _problem(what: str, do: str) -> dict[str, str]:
    return {"what": what, "do": do}


def _present(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _devices() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"device": "cpu", "name": platform.processor() or platform.machine(), "cores": cores()}]
    if "torch" in sys.modules:
        import torch

        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            facts = {"device": f"cuda:{index}", "name": properties.name, "memory_gb": round(properties.total_memory / 1e9, 1)}
            found.append(facts | {"full_scale": full_scale(torch.device("cuda", index))})
    return found


def full_scale(device: torch.device) -> dict[str, Any] | None:
    """Return the memory mode that suits a GPU's free memory at full scale, and what each needs (10^9 bytes); None on the CPU."""
    from portrait_backend.diffusion import memory

    free = memory.free_memory_gb(device)
    if free is None:
        return None
    needed = {mode: memory.needed_gb(mode, "bf16") for mode in memory.MODES}
    return {"free_gb": round(free, 1), "memory": memory.recommended(free), "needed_gb": needed}
