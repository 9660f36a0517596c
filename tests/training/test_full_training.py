"""Training at full scale on tiny models: from a diffusers folder and a BrushNet, on two processes, and what a dry run says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from portrait_backend.cli import main
from portrait_backend.diffusion.memory import MemoryPlan
from portrait_backend.diffusion.sources import find_sources
from portrait_backend.models.store import ENVIRONMENT
from portrait_backend.refinement.brushnet import read_brushnet
from portrait_backend.refinement.hybrid_priors import HybridPriors
from portrait_backend.refinement.injection import injected
from portrait_backend.refinement.sampling import refiner_from
from portrait_backend.training.dry_run import describe
from portrait_backend.training.hybrid_priors_trainer import save_activations
from portrait_shared.settings import DiffusionSettings
from tests.diffusion.full_models import TINY_UNET, write_models
from tests.training.sphere_data import write_spheres

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"), ("sd15", "brushnet"))


@pytest.fixture(scope="module")
def spheres(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spheres")
    write_spheres(folder, size=64)
    return folder


@pytest.fixture
def run(models: Path, spheres: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv(ENVIRONMENT, str(models))

    def call(what: str, *more: str) -> int:
        options = ["--data", str(spheres), "--out", str(tmp_path / what), "--scale", "full", "--batch", "1", "--save-every", "1"]
        return main(["train", what, *options, "--evaluate-every", "9", *more])

    return call


@pytest.mark.slow
def test_branches_start_from_brushnet_and_serve_the_product(run: Any, models: Path, tmp_path: Path) -> None:
    assert run("hybrid-priors", "--steps", "1", "--accumulate", "2") == 0
    state = torch.load(tmp_path / "hybrid-priors/checkpoint.pt", weights_only=True)
    start = read_brushnet(models / "brushnet")
    near = state["network"]["explicit.mid_block.resnets.0.conv1.weight"] - start["mid_block.resnets.0.conv1.weight"]
    assert 0 < float(near.abs().max()) < 1e-3, "one small step away from BrushNet"
    assert run("hybrid-priors", "--steps", "2") == 0
    assert torch.load(tmp_path / "hybrid-priors/checkpoint.pt", weights_only=True)["step"] == 2, "it resumes"
    (models / "trained").mkdir()
    weights = tmp_path / "hybrid-priors/hybrid_priors.safetensors"
    weights.rename(models / "trained" / weights.name)
    sources = find_sources(DiffusionSettings(weights="sd15"), ("refinement",), models)
    refiner = refiner_from(sources, MemoryPlan("resident", "fp32", torch.device("cpu")))
    assert sources.warnings == () and refiner.priors.implicit is not None


@pytest.mark.slow
def test_the_denoiser_goes_on_learning_under_its_prompts(run: Any, models: Path, tmp_path: Path) -> None:
    assert run("denoiser", "--steps", "1") == 0
    after = UNet2DConditionModel.from_pretrained(tmp_path / "denoiser/unet").state_dict()
    before = UNet2DConditionModel.from_pretrained(models / "sd15/unet").state_dict()
    assert after.keys() == before.keys() and any(not torch.equal(after[name], before[name]) for name in after)


def test_full_scale_without_weights_says_what_to_download(
    spheres: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    assert main(["train", "hybrid-priors", "--data", str(spheres), "--scale", "full", "--out", str(tmp_path / "out")]) == 2
    assert "portrait-diffusion models download sd15 && portrait-diffusion models download brushnet" in capsys.readouterr().err


def test_checkpointing_gives_the_same_gradients() -> None:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**TINY_UNET).requires_grad_(False)
    priors = HybridPriors.of_unet(unet, implicit=0.0)
    for parameter in priors.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    z, t, tokens = torch.randn(1, 4, 16, 16), torch.tensor([200]), torch.randn(1, 77, 8)

    def gradients() -> list[torch.Tensor]:
        priors.zero_grad()
        features = priors.explicit(torch.cat([z, z, z[:, :1]], 1), t)
        residuals = [zero(f) for zero, f in zip(priors.zero, features, strict=True)]
        with injected(unet, residuals):
            out = unet(z, t, tokens).sample
        out.pow(2).mean().backward()
        return [p.grad.clone() for p in (*priors.explicit.parameters(), *priors.zero.parameters()) if p.grad is not None]

    plain = gradients()
    save_activations(unet, priors)
    again = gradients()
    assert len(plain) == len(again) > 100 and max(float(g.abs().max()) for g in plain) > 0
    for a, b in zip(plain, again, strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize(("what", "learning", "frozen"), [("hybrid-priors", 1246.0, 1066.3), ("denoiser", 859.5, 206.8)])
def test_a_dry_run_counts_the_real_sizes(what: str, learning: float, frozen: float) -> None:
    small, large = (describe(what, "full", batch, 1, 1000) for batch in (1, 2))
    assert f"{learning} M parameters learn, {frozen} M are frozen" in small[0]
    assert f"{4 * (5 * learning + frozen) / 1e3:.2f} GB" in small[1]
    flops = [float(next(line for line in lines if "TFLOP a step" in line).split()[1]) for lines in (small, large)]
    assert flops[1] == pytest.approx(2 * flops[0], rel=0.05) and "assumed" in small[-1]


def test_a_dry_run_needs_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "phi", "--dry-run"]) == 0
    assert "1.8 M parameters learn" in capsys.readouterr().out
    assert main(["train", "phi"]) == 2 and "--data" in capsys.readouterr().err
    assert main(["train", "codec", "--dry-run"]) == 2 and "no estimate" in capsys.readouterr().err


def test_a_tracker_that_is_missing_is_named(
    spheres: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "wandb" else found(name, *more))
    assert main(["train", "hybrid-priors", "--data", str(spheres), "--out", str(tmp_path), "--log-with", "wandb"]) == 2
    assert "the tracker wandb is not installed" in capsys.readouterr().err


def test_numbers_reach_a_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from portrait_backend.training import trainer
    from tests.training.test_trainer import LineRecipe, options

    seen: list[tuple[int, dict[str, float]]] = []
    monkeypatch.setitem(sys.modules, "tensorboard", ModuleType("tensorboard"))
    monkeypatch.setattr(trainer.importlib.util, "find_spec", lambda name, *more: True)

    class Noted(trainer.Accelerator):  # type: ignore[misc]
        def __init__(self, **given: Any) -> None:
            assert given.pop("log_with") == "tensorboard"
            super().__init__(**given)

        def init_trackers(self, name: str, config: dict[str, Any] | None = None, **_: Any) -> None:
            seen.append((0, dict(config or {})))

        def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
            seen.append((int(step or 0), values))

    monkeypatch.setattr(trainer, "Accelerator", Noted)
    trainer.train(LineRecipe(), replace(options(tmp_path, 200), log_with="tensorboard"))
    assert [step for step, _ in seen] == [0, 100, 200] and seen[0][1]["batch"] == 64
    assert {"total", "validation/slope"} <= set(seen[-1][1])


TWO = """
import torch
from tests.training.test_trainer import LineRecipe, options
from portrait_backend.training.trainer import train
from pathlib import Path
import os, sys
recipe = LineRecipe()
train(recipe, options(Path(sys.argv[1]), 60))
Path("slope" + os.environ["RANK"]).write_text(f"{float(recipe.network.weight.detach()):.6f}")  # the streams of two may mix
"""


@pytest.mark.slow
def test_two_processes_train_one_network(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--rdzv-backend=c10d",
               "--rdzv-endpoint=localhost:0", str(script), str(tmp_path / "out")]  # fmt: skip
    root = Path(__file__).parents[2]
    paths = [str(root), str(root / "backend"), str(root / "shared")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    slopes = [(tmp_path / f"slope{rank}").read_text() for rank in range(2)]
    assert slopes[0] == slopes[1]
    state = torch.load(tmp_path / "out/checkpoint.pt", weights_only=True)
    assert state["step"] == 60 and f"{float(state['network']['weight']):.6f}" == slopes[0]
    assert [json.loads(line)["step"] for line in (tmp_path / "out/log.jsonl").read_text().splitlines()] == [60], "one process writes"
