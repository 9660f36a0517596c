"""`doctor`: the verdict follows from what is found, and every problem comes with what to do."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from portrait_backend import doctor
from portrait_backend.cli import main
from portrait_backend.models import inventory
from portrait_backend.prior import weights as prior


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "one.safetensors").write_bytes(b"weights")
    (tmp_path / "SHA256SUMS").write_text(f"{hashlib.sha256(b'weights').hexdigest()}  one.safetensors\n")
    monkeypatch.setattr(doctor, "starter_weights", lambda: inventory.starter_weights(tmp_path))
    monkeypatch.setattr(doctor, "REQUIRED", {"numpy": "numpy"})
    monkeypatch.setattr(doctor, "total_memory_gb", lambda: 16.0)
    return tmp_path


def examine(capsys: pytest.CaptureFixture[str], code: int) -> dict[str, Any]:
    assert main(["doctor", "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_ready(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = examine(capsys, 0)
    assert report["ready"] and report["problems"] == [] and report["weights"][0]["size"] == 7
    assert report["devices"][0]["device"] == "cpu" and report["packages"]["numpy"]["version"]
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "ready"


def test_missing_and_altered_weights(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (weights / "one.safetensors").write_bytes(b"other")
    assert "altered" in examine(capsys, 2)["problems"][0]["what"]
    (weights / "one.safetensors").unlink()
    assert "missing" in examine(capsys, 2)["problems"][0]["what"]
    (weights / "SHA256SUMS").unlink()
    assert "not in this installation" in examine(capsys, 2)["problems"][0]["what"]
    assert main(["doctor"]) == 2
    assert capsys.readouterr().out.splitlines()[-1] == "not ready"


def test_a_package_that_cannot_be_imported(weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "REQUIRED", {"numpy": "no_such_module"})
    (problem,) = examine(capsys, 2)["problems"]
    assert "numpy" in problem["what"] and "pip install" in problem["do"]


def test_a_package_that_is_looked_at_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._package("diffusers", "diffusers")["error"] == "" and doctor._package("mediapipe", "mediapipe")["version"]
    monkeypatch.setattr(doctor, "SLOW", {"no_such_module": ()})
    assert "no_such_module" in doctor._package("numpy", "no_such_module")["error"]
    monkeypatch.setattr(doctor, "SLOW", {"numpy": ()})
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: ["no-such-thing>=1", "another; extra == 'x'"])
    assert "no-such-thing" in doctor._package("numpy", "numpy")["error"]


def test_a_missing_system_library_names_its_debian_package() -> None:
    error = "libGL.so.1: cannot open shared object file: No such file or directory"
    assert doctor._package_problem("mediapipe", error) == {"what": "mediapipe needs libGL.so.1", "do": "apt-get install libgl1"}


def test_too_little_memory(weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "total_memory_gb", lambda: 1.9)
    assert "1.9 GB of memory" in examine(capsys, 2)["problems"][0]["what"]


def test_memory_of_this_machine_is_plausible() -> None:
    memory = doctor.total_memory_gb()
    assert memory is None or 0.5 < memory < 1e5


def test_the_shipped_weights_are_the_listed_ones() -> None:
    assert {prior.WEIGHTS, "landmarks.safetensors"} <= set(inventory.listed_sums())
    present = {path.name for path in inventory.STARTER.glob("*.safetensors")}
    assert present == set(inventory.listed_sums()), (
        "run: cd backend/portrait_backend/models/starter && sha256sum *.safetensors > SHA256SUMS"
    )
    assert all(weight.state == "ok" for weight in inventory.starter_weights())
