"""What starts quickly stays so: guards on what is imported, never on seconds (`benchmarks/start_up.py` measures those)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from portrait_backend.painting.adam import Adam

HEAVY = {"torch", "numpy", "scipy", "PIL", "cv2", "mediapipe", "numba", "zmq", "diffusers", "safetensors"}
COMPILER = {"torch._dynamo", "torch._inductor", "diffusers", "transformers", "sympy"}
"""Each takes a second or more to load, and the main job's draft needs none of them."""
PHOTO = Path(__file__).parents[1] / "examples/astronaut.png"


def imported(program: str) -> set[str]:
    """Return the modules that a program in a fresh interpreter has imported."""
    code = f"import sys, json\n{program}\nprint('MODULES', json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("MODULES"))
    return set(json.loads(line.removeprefix("MODULES")))


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["--version"], ["generate"], ["generate", "x", "--faces", "?"]])
def test_help_and_typing_errors_load_nothing_heavy(arguments: list[str]) -> None:
    assert not imported(f"from portrait_backend.cli import main; main({arguments!r})") & HEAVY


def test_the_settings_load_the_standard_library_only() -> None:
    assert not imported("import portrait_shared.settings") & HEAVY


@pytest.mark.slow
def test_doctor_does_not_load_the_compiler() -> None:
    assert not imported("from portrait_backend.cli import main; main(['doctor', '--json'])") & (COMPILER | {"mediapipe"})


@pytest.mark.slow
def test_the_main_job_does_not_load_the_compiler(tmp_path: Path) -> None:
    small = ["--prior-fit-steps", "2", "--mesh-resolution", "64", "--faces", "4000", "--texture-size", "256", "--view-size", "64"]
    film = ["--output-turntable-frames", "4", "--output-turntable-size", "64"]
    command = ["generate", str(PHOTO), "-o", str(tmp_path / "out"), *small, *film]
    assert not imported(f"from portrait_backend.cli import main; assert main({command!r}) == 0") & COMPILER


def test_the_face_tools_load_no_plots_and_leave_them_to_others() -> None:
    load = "from portrait_backend.portrait.mediapipe_tools import load_solutions; load_solutions()"
    assert not {name for name in imported(load) if name.partition(".")[0] == "matplotlib"}
    assert "matplotlib.backends" in imported(f"{load}; import matplotlib.pyplot; assert matplotlib.pyplot.plot")


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_is_torchs(decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(3, 50, generator=generator)
    ours, theirs = (torch.zeros(3, 50, requires_grad=True) for _ in range(2))
    adam = Adam(ours, 0.1, (0.9, 0.95), decay)
    reference = torch.optim.Adam([theirs], 0.1, betas=(0.9, 0.95), weight_decay=decay, fused=True)
    for step in range(20):
        adam.lr = reference.param_groups[0]["lr"] = 0.1 * (1 - step / 40)
        adam.minimise((ours - target).square().sum())
        reference.zero_grad()
        (theirs - target).square().sum().backward()
        reference.step()
    assert torch.equal(ours, theirs) and float((ours - target).detach().abs().max()) < 2


def test_adam_needs_a_loss_of_its_tensor() -> None:
    other = torch.zeros(2, requires_grad=True)
    with pytest.raises(ValueError, match="depend"):
        Adam(torch.zeros(2, requires_grad=True), 0.1).minimise(other.sum())
