"""Memory modes: the same results in every mode, and a recommendation that follows from counted shapes and the free memory."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from portrait_backend import doctor
from portrait_backend.diffusion import memory
from portrait_backend.diffusion.memory import ACTIVATIONS, LARGEST_LAYER, MODES, PARAMETERS, MemoryPlan, Mode, Precision, needed_gb, plan
from portrait_backend.diffusion.sources import Sources, find_sources
from portrait_backend.refinement.hybrid_priors import Conditions
from portrait_backend.refinement.injection import injected
from portrait_backend.refinement.sampling import refiner_from
from portrait_backend.training.estimate import cost_of
from portrait_shared.settings import DiffusionSettings
from tests.diffusion.full_models import SD15_TEXT, SD15_UNET, SD15_VAE, full_size_branches, write_models

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return find_sources(DiffusionSettings(weights="sd15"), folder=write_models(tmp_path_factory.mktemp("models")))


@torch.no_grad()
def outcome(sources: Sources, mode: Mode, precision: Precision, size: int = 64) -> tuple[Tensor, Tensor]:
    """A guided noise prediction under the branches' residuals, and the decoded latents of an image of `size` px."""
    refiner = refiner_from(sources, MemoryPlan(mode, precision, CPU))
    draw = torch.Generator().manual_seed(3)
    image = torch.rand(1, 3, size, size, generator=draw)
    z = refiner.codec.encode(image)
    told, t = Conditions(z, torch.ones(1, 1, *z.shape[2:])), torch.tensor([400])
    tokens = refiner.denoiser.condition.encode(torch.tensor([90.0]), torch.zeros(1))
    residuals = refiner.priors(z, t, refiner.denoiser.alpha_bar(t), told)
    with injected(refiner.denoiser.unet, residuals):
        eps = refiner.denoiser.predict_noise(torch.randn(z.shape, generator=draw), 400, tokens, guidance=5.0)
    return eps, refiner.codec.decode(z)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_computes_the_same(sources: Sources, mode: Mode) -> None:
    for got, wanted in zip(outcome(sources, mode, "fp32"), outcome(sources, "resident", "fp32"), strict=True):
        torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("mode", MODES)
def test_half_precision_is_near_and_answers_in_single(sources: Sources, mode: Mode, precision: Precision) -> None:
    for got, wanted in zip(outcome(sources, mode, precision), outcome(sources, "resident", "fp32"), strict=True):
        assert got.dtype == torch.float32
        assert float((got - wanted).abs().mean()) < 0.05 * float(wanted.std()), "a few of the last bits of a half"


def test_a_streamed_codec_works_in_tiles_and_stays_near(sources: Sources) -> None:
    plain, tiled = (outcome(sources, mode, "fp32", 384)[1] for mode in ("resident", "streamed"))
    difference = (plain - tiled).abs().mean()
    assert 0 < float(difference) < 0.3 * float(plain.std()), "norms see a tile at a time, which random weights make much of"


def test_one_network_at_a_time_is_on_the_device(sources: Sources) -> None:
    from portrait_backend.diffusion.placement import one_at_a_time

    moves: list[tuple[str, str]] = []

    class Noted(torch.nn.Linear):
        def to(self, *args: object, **kwargs: object) -> Noted:  # type: ignore[override]
            moves.append((self.name, str(args[0])))  # type: ignore[has-type]
            return self

    pair = []
    for name in ("a", "b"):
        module = Noted(2, 2)
        module.name = name
        pair.append(module)
    one_at_a_time(pair, torch.device("meta"))
    assert moves == [("a", "cpu"), ("b", "cpu")]
    moves.clear()
    pair = [module.requires_grad_(False) for module in pair]
    for module in (pair[0], pair[0], pair[1]):
        with pytest.raises(RuntimeError):  # its weights didn't really move, its input did
            module(torch.ones(1, 2))
    assert moves == [("a", "meta"), ("a", "cpu"), ("b", "meta")]


def test_declared_sizes_are_those_of_the_networks() -> None:
    with torch.device("meta"):
        unet, codec = UNet2DConditionModel(**SD15_UNET), AutoencoderKL(**SD15_VAE).requires_grad_(False)
        text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**SD15_TEXT))
    branches = full_size_branches()
    small = [branches.zero, branches.fusion, branches.geometry]

    def millions(*modules: torch.nn.Module | None) -> float:
        return sum(p.numel() for m in modules if m is not None for p in m.parameters()) / 1e6

    counted = {"denoiser": millions(unet), "text": millions(text), "codec": millions(codec), "explicit": millions(branches.explicit)}
    counted |= {"implicit": millions(branches.implicit), "small": millions(*small)}
    assert counted == pytest.approx(PARAMETERS, abs=0.06)
    layers = [sum(p.numel() for p in m.parameters(recurse=False)) for net in (unet, codec, text, branches) for m in net.modules()]
    assert max(layers) / 1e6 == pytest.approx(LARGEST_LAYER, abs=0.06)
    image = torch.empty(1, 3, 512, 512, device="meta", requires_grad=True)
    encoding, _ = cost_of(lambda: codec.encode(image).latent_dist.mode().sum().backward())
    assert encoding / 4e6 == pytest.approx(ACTIVATIONS, rel=0.01)
    with torch.no_grad():
        inputs = (torch.empty(2, 4, 64, 64, device="meta"), torch.ones(2, device="meta"), torch.empty(2, 77, 768, device="meta"))
        assert cost_of(lambda: unet(*inputs).sample)[0] < encoding, "the UNet asks for less, even with unfused attention"


def test_memory_is_counted_while_it_lives() -> None:
    x = torch.empty(1000, 1000, device="meta")

    def work() -> Tensor:
        a = x * 2
        b = a + 1
        del a
        return (b * 3).sum()

    with torch.no_grad():
        assert cost_of(work)[0] == pytest.approx(2 * 4e6, rel=1e-3), "two of the three at a time"
    assert cost_of(lambda: x @ x)[1] == 2 * 1000**3


@pytest.mark.parametrize(("card", "mode"), [(4, "streamed"), (8, "sequential"), (12, "resident"), (24, "resident"), (80, "resident")])
def test_auto_takes_what_fits_the_free_memory(card: int, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory_gb", lambda device: 0.92 * card)
    monkeypatch.setattr(memory, "computes_bf16", lambda kind: True)
    found = plan(DiffusionSettings(weights="sd15"), torch.device("cuda"))
    assert (found.mode, found.precision) == (mode, "bf16")
    starter = plan(DiffusionSettings(), torch.device("cuda"))
    assert (starter.mode, starter.precision) == ("resident", "fp32"), "the shipped networks are small"
    asked = plan(DiffusionSettings(weights="sd15", memory="streamed", precision="fp16"), torch.device("cuda"))
    assert (asked.mode, asked.precision) == ("streamed", "fp16")


def test_old_cards_and_processors_get_what_they_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory_gb", lambda device: 10.0)
    monkeypatch.setattr(memory, "computes_bf16", lambda kind: False)
    assert plan(DiffusionSettings(weights="sd15"), torch.device("cuda")).precision == "fp16"
    assert plan(DiffusionSettings(weights="sd15"), CPU) == MemoryPlan("resident", "fp32", CPU)


def test_less_memory_is_asked_for_from_mode_to_mode() -> None:
    for precision in ("fp32", "bf16"):
        needs = [needed_gb(mode, precision) for mode in MODES]
        assert needs == sorted(needs, reverse=True) and needs[0] > 1.4 * needs[1] > needs[2]


def test_doctor_recommends_a_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    for card, mode in ((8, "sequential"), (24, "resident")):
        monkeypatch.setattr(memory, "free_memory_gb", lambda device, card=card: 0.92 * card)
        assert doctor.full_scale(torch.device("cuda")) == {
            "free_gb": round(0.92 * card, 1),
            "memory": mode,
            "needed_gb": {m: needed_gb(m, "bf16") for m in MODES},
        }
    monkeypatch.undo()
    assert doctor.full_scale(CPU) is None
