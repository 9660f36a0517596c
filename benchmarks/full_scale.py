"""Full scale at real shapes with random weights: it makes noise, but it loads, runs, and tells seconds and memory.

    python3 -m benchmarks.full_scale models DIR            # write models of Stable Diffusion 1.5's and BrushNet's sizes (4.5 GB)
    python3 -m benchmarks.full_scale step DIR              # one guided denoising step of stage 3 at 512 px, encoding and decoding
    PORTRAIT_DIFFUSION_MODELS=DIR portrait-diffusion generate photo.jpg -o out/ --preset full --stages prior,restoration,refinement ...

From the root of the repository: the layouts are those of the tests (tests/diffusion/full_models.py).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from portrait_backend import devices
from portrait_backend.diffusion.memory import MODES, plan
from portrait_backend.diffusion.sources import find_sources
from portrait_backend.refinement.hybrid_priors import Conditions
from portrait_backend.refinement.injection import injected
from portrait_backend.refinement.sampling import refiner_from
from portrait_shared.settings import DiffusionSettings
from tests.diffusion.full_models import SD15_TEXT, SD15_UNET, SD15_VAE, brushnet_names, register, write_scheduler

SIZE, STEP, GUIDANCE = 512, 400, 7.5


def write_models(folder: Path) -> None:
    """Write sd15 and brushnet of random fp16 weights; sd15-normal shares sd15's files."""
    torch.manual_seed(0)
    home = folder / "sd15"
    for kind, config, part in ((UNet2DConditionModel, SD15_UNET, "unet"), (AutoencoderKL, SD15_VAE, "vae")):
        kind(**config).half().save_pretrained(home / part)
    CLIPTextModel(CLIPTextConfig(**SD15_TEXT)).half().save_pretrained(home / "text_encoder")
    write_scheduler(home)
    with torch.device("meta"):
        names = brushnet_names(UNet2DConditionModel(**SD15_UNET))
    (folder / "brushnet").mkdir()
    weights = {name: (0.01 * torch.randn(shape)).half() for name, shape in names.items()}
    save_file(weights, folder / "brushnet/diffusion_pytorch_model.safetensors")
    (folder / "sd15-normal").mkdir()
    for part in home.iterdir():
        (folder / "sd15-normal" / part.name).symlink_to(part.resolve(), target_is_directory=True)
    for name in ("sd15", "sd15-normal", "brushnet"):
        register(folder, name)


@torch.no_grad()
def step(folder: Path, settings: DiffusionSettings, device: torch.device) -> dict[str, object]:
    """Return seconds of loading, encoding, branches, guided UNet and decoding, and the peak memory."""
    times: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal clock
        if device.type == "cuda":
            torch.cuda.synchronize()
        times[name], clock = round(time.perf_counter() - clock, 2), time.perf_counter()

    refiner = refiner_from(find_sources(settings, ("refinement",), folder), plan(settings, device))
    lap("load")
    tokens = refiner.denoiser.condition.encode(torch.tensor([90.0], device=device), torch.zeros(1, device=device))
    lap("text")
    z = refiner.codec.encode(torch.rand(1, 3, SIZE, SIZE, device=device))
    lap("encode")
    told, t = Conditions(z, torch.ones(1, 1, *z.shape[2:], device=device)), torch.tensor([STEP], device=device)
    residuals = refiner.priors(z, t, refiner.denoiser.alpha_bar(t), told)
    lap("branches")
    with injected(refiner.denoiser.unet, residuals):
        eps = refiner.denoiser.predict_noise(z, STEP, tokens, GUIDANCE)
    lap("unet")
    image = refiner.codec.decode(refiner.denoiser.x0_from(z, STEP, eps))
    lap("decode")
    assert image.shape == (1, 3, SIZE, SIZE) and bool(torch.isfinite(image).all())
    found = plan(settings, device)
    return {
        "mode": found.mode,
        "precision": found.precision,
        "device": devices.describe_device(device),
        "residuals": len(residuals),
        "seconds": times,
        "peak_memory_mb": devices.peak_memory_mb(),
        "peak_gpu_memory_mb": devices.peak_gpu_memory_mb(device),
    }


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("models", "step"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--memory", choices=("auto", *MODES), default="auto")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    parser.add_argument("--device", default="auto")
    a = parser.parse_args()
    if a.what == "models":
        write_models(a.folder)
    else:
        settings = DiffusionSettings("sd15", a.memory, a.precision)
        print(json.dumps(step(a.folder, settings, devices.choose_device(a.device))))


if __name__ == "__main__":
    main()
