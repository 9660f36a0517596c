"""Full scale on tiny weights: where the networks come from, what is missing, and the whole path from a photo to a mesh."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import portrait_backend
from portrait_backend import stages
from portrait_backend.context import Context, cpu_context
from portrait_backend.diffusion.condition import PromptCondition
from portrait_backend.diffusion.memory import MemoryPlan
from portrait_backend.diffusion.sources import FULL_SIZE, find_sources
from portrait_backend.diffusion.weights import load_codec, load_denoiser
from portrait_backend.models.store import ENVIRONMENT
from portrait_backend.portrait.types import Portrait
from portrait_backend.radiance.analytic import ellipsoid_head
from portrait_backend.radiance.head import Head
from portrait_backend.refinement.hybrid_priors import HybridPriors
from portrait_backend.refinement.sampling import refiner_from
from portrait_backend.refinement.weights import fingerprint, save_hybrid_priors
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import DiffusionSettings, MeshSettings, OutputSettings, RefinementSettings, RestorationSettings, Settings
from tests.cli.test_refinement_stage import red_portrait
from tests.diffusion.full_models import write_models

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")
FULL = DiffusionSettings(weights="sd15")
CPU = MemoryPlan("resident", "fp32", torch.device("cpu"))
SETTINGS = Settings(
    preset="full",
    stages=("prior", "restoration", "refinement"),
    restoration=RestorationSettings(steps=2, guidance="interval", guidance_scale=7.5, noise_start=0.5, colour_weight=1.0, render_size=32),
    refinement=RefinementSettings(
        views=3, image_size=64, texture_views=64, iterations=1, steps=2, guidance=5, between_views=0, settle_steps=2, tones="denoiser"
    ),
    mesh=MeshSettings(resolution=48, faces=1500, texture_size=256),
    output=OutputSettings(view_size=64, turntable="none"),
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


class EllipsoidPrior:
    def initialise(self, portrait: Portrait, settings: Any, context: Context) -> Head:
        return ellipsoid_head(depth=1, size=48)


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("portrait_backend.portrait.align.prepare_portrait", red_portrait)
    monkeypatch.setattr("portrait_backend.prior.create_prior", lambda provider: EllipsoidPrior())
    (tmp_path / "someone.png").write_bytes(b"photo")
    return tmp_path / "someone.png"


def test_the_preset_asks_for_the_downloaded_networks() -> None:
    assert Settings(preset="full").diffusion.weights == "sd15" and Settings(preset="fine").diffusion.weights == "starter"


def test_a_job_without_the_weights_says_what_to_download(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "nothing"))
    with pytest.raises(PortraitDiffusionError) as caught:
        portrait_backend.generate(photo, SETTINGS)
    assert caught.value.code == "weights-missing"
    for name in ("sd15", "sd15-normal", "brushnet"):
        assert f"portrait-diffusion models download {name}" in caught.value.hint
    transport = replace(SETTINGS, stages=("prior", "refinement"), refinement=replace(SETTINGS.refinement, method="transport"))
    assert stages.with_networks(transport) == (), "no network, nothing to download"
    assert stages.with_networks(SETTINGS) == ("restoration", "refinement")


def test_only_what_a_stage_needs_is_asked_for(tmp_path: Path) -> None:
    for chosen, absent in ((("restoration",), "brushnet"), (("refinement",), "sd15-normal")):
        with pytest.raises(PortraitDiffusionError) as caught:
            find_sources(FULL, chosen, tmp_path)
        assert f"{absent} " not in caught.value.hint.replace("&&", " ") + " "
    assert find_sources(FULL, (), tmp_path).record == {}
    assert find_sources(DiffusionSettings(), folder=tmp_path).denoiser == "starter"


def test_every_part_of_the_folders_is_read(models: Path) -> None:
    sources = find_sources(FULL, folder=models)
    assert sources.size == FULL_SIZE and sources.priors is None and set(sources.record) == {"sd15", "sd15-normal", "brushnet"}
    assert "BrushNet" in sources.warnings[0] and sources.branches == "brushnet, untrained"
    rgb, normal, codec = load_denoiser(sources.denoiser), load_denoiser(sources.normal), load_codec(sources.codec)
    assert codec.factor == 8 and rgb.scheduler.config["prediction_type"] == "epsilon" and rgb.steps == 1000
    assert float(rgb.alphas_cumprod[-1]) == pytest.approx(0.00466, abs=1e-4), "Stable Diffusion's schedule"
    assert fingerprint(rgb.unet) != fingerprint(normal.unet)
    assert load_denoiser(sources.denoiser, torch.float16).unet.dtype == torch.float16


def test_prompts_name_view_and_domain_and_are_encoded_once(models: Path) -> None:
    condition = load_denoiser(models / "sd15").condition
    assert isinstance(condition, PromptCondition)
    named = ((0, 0, "front"), (40, 0, "front"), (90, 0, "side"), (-90, 0, "side"), (180, 0, "back"), (0, 70, "overhead"))
    for azimuth, elevation, word in named:
        assert condition.prompt(azimuth, elevation, "rgb").endswith(f", {word} view")
    assert condition.prompt(0, 0, "normal").startswith("a normal map of ")
    calls: list[int] = []
    condition.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    first = condition.encode(torch.tensor([0.0, 180.0]), torch.zeros(2))
    again = condition.encode(torch.tensor([175.0, 20.0]), torch.zeros(2))
    assert first.shape == (2, 77, 8) and torch.equal(first, again.flip(0)) and len(calls) == 1


def test_trained_branches_take_the_place_of_brushnets(models: Path, tmp_path: Path) -> None:
    home = tmp_path / "models"
    write_models(home, ("sd15",))
    denoiser, codec = load_denoiser(home / "sd15"), load_codec(home / "sd15")
    (home / "trained").mkdir()
    trained = HybridPriors.of_unet(denoiser.unet)
    facts = {"denoiser": fingerprint(denoiser), "codec": fingerprint(codec)}
    save_hybrid_priors(trained, home / "trained/hybrid_priors.safetensors", **facts)
    sources = find_sources(FULL, ("refinement",), home)
    assert sources.warnings == () and sources.branches == "trained/hybrid_priors.safetensors"
    assert refiner_from(sources, CPU).priors.implicit is not None
    save_hybrid_priors(trained, home / "trained/hybrid_priors.safetensors", **facts | {"denoiser": "another"})
    with pytest.raises(PortraitDiffusionError, match="trained over another denoiser"):
        refiner_from(find_sources(FULL, ("refinement",), home), CPU)


def test_a_cut_file_is_named(models: Path, tmp_path: Path) -> None:
    home = tmp_path / "models"
    write_models(home, ("sd15",))
    weights = home / "sd15/unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(PortraitDiffusionError, match="unet") as caught:
        load_denoiser(home / "sd15")
    assert caught.value.code == "weights-unreadable"


@pytest.mark.slow
def test_all_stages_make_a_mesh_and_the_record_says_what_of(
    photo: Path, models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(models))
    torch.set_num_threads(1)
    result = portrait_backend.generate(photo, SETTINGS, output=photo.parent / "out", checkpoints=photo.parent / "stages")
    record = json.loads((photo.parent / "out/job.json").read_text())
    assert (photo.parent / "out/head.glb").stat().st_size > 10000 and len(result.mesh.faces) > 500
    assert [s["stage"] for s in record["stages"]] == ["portrait", "prior", "restoration", "refinement", "mesh", "views"]
    assert record["branches"] == "brushnet, untrained" and {"sd15", "sd15-normal", "brushnet"} <= set(record["weights"])
    assert any("BrushNet" in warning for warning in record["warnings"]) and "BrushNet" in caplog.text
    assert record["memory"] == {"mode": "resident", "precision": "fp32"}
    plain = ellipsoid_head(depth=1, size=48)
    assert not torch.equal(plain.geometry.planes, result.head.geometry.planes), "stage 2 has moved the shape"
    assert not torch.equal(plain.appearance.planes, result.head.appearance.planes)


def test_the_context_of_tests_uses_the_shipped_networks() -> None:
    assert cpu_context().diffusion == DiffusionSettings()
