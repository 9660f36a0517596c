"""Codec and denoiser files: what is written comes back; what is wrong is said in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from portrait_backend.diffusion.codec import STARTER_CODEC, Codec, starter_codec, tiny_codec
from portrait_backend.diffusion.denoiser import starter_denoiser, tiny_denoiser
from portrait_backend.diffusion.weights import load_codec, load_denoiser, save_codec, save_denoiser
from portrait_backend.models.inventory import starter_weights
from portrait_shared.errors import PortraitDiffusionError


def image(size: int = 32) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def count(module: torch.nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def test_starter_sizes_fit_the_package() -> None:
    codec = starter_codec()
    assert count(codec) < 1.2 and codec.factor == 4 and codec.channels == STARTER_CODEC["latent_channels"]
    assert count(starter_denoiser()) < 5.5


def test_the_codec_is_differentiable_and_checks_its_input() -> None:
    codec = tiny_codec()
    rgb = image().requires_grad_()
    latents = codec.encode(rgb)
    assert latents.shape == (2, 4, 8, 8) and codec.decode(latents).shape == rgb.shape
    codec.decode(latents).mean().backward()
    assert rgb.grad is not None and rgb.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="divisible by 4"):
        codec.encode(image(30))
    with pytest.raises(ValueError, match="decodes latents"):
        codec.decode(torch.zeros(1, 3, 8, 8))


def test_scaling_follows_the_config() -> None:
    model = AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                          layers_per_block=1, norm_num_groups=4, scaling_factor=0.5, shift_factor=0.25)  # fmt: skip
    codec = Codec(model.eval().requires_grad_(False))
    assert codec.factor == 2
    raw = model.encode(image() * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(codec.encode(image()), (raw - 0.25) * 0.5)
    torch.testing.assert_close(codec.decode(codec.encode(image())), (model.decode(raw).sample + 1) / 2)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    codec, denoiser = tiny_codec(1), tiny_denoiser(1)
    save_codec(codec, tmp_path / "c.safetensors", data="none")
    save_denoiser(denoiser, tmp_path / "d.safetensors")
    torch.testing.assert_close(load_codec(tmp_path / "c.safetensors").encode(image()), codec.encode(image()), atol=1e-2, rtol=1e-2)
    again = load_denoiser(tmp_path / "d.safetensors")
    z, t = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([300])
    inputs = (torch.tensor([30.0]), torch.zeros(1), "normal", image()[:1, :1].expand(1, 4, -1, -1))
    outputs = [d.predict_noise(z, t, d.condition.encode(*inputs)) for d in (denoiser, again)]
    torch.testing.assert_close(*outputs, atol=1e-2, rtol=1e-2)


def test_a_diffusers_folder_loads(tmp_path: Path) -> None:
    codec = tiny_codec(2)
    codec.model.save_pretrained(tmp_path / "vae")
    assert torch.equal(load_codec(tmp_path).encode(image()), codec.encode(image()))


@pytest.mark.filterwarnings("ignore")
def test_a_full_scale_folder_loads(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    denoiser = tiny_denoiser()
    denoiser.unet.save_pretrained(tmp_path / "unet")
    denoiser.scheduler.save_pretrained(tmp_path / "scheduler")
    config = transformers.CLIPTextConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=300)
    transformers.CLIPTextModel(config).save_pretrained(tmp_path / "text_encoder")
    home = tmp_path / "tokenizer"
    home.mkdir()
    letters = [*"abcdefghijklmnopqrstuvwxyz,", *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz,"), "<|startoftext|>", "<|endoftext|>"]
    (home / "vocab.json").write_text("{" + ", ".join(f'"{c}": {i}' for i, c in enumerate(letters)) + "}")
    (home / "merges.txt").write_text("#version: 0.2\n")
    (home / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}')
    loaded = load_denoiser(tmp_path)
    tokens = loaded.condition.encode(torch.tensor([0.0, 90.0]), torch.zeros(2), "normal")
    assert tokens.shape == (2, 77, 8) and not torch.equal(tokens[0], tokens[1])
    assert loaded.predict_noise(torch.zeros(2, 4, 16, 16), 10, tokens).shape == (2, 4, 16, 16)


def test_wrong_places_and_files_are_named(tmp_path: Path) -> None:
    save_codec(tiny_codec(), tmp_path / "c.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not a weight file")
    for where, code in (
        (tmp_path / "nowhere", "weights-missing"),
        (tmp_path, "weights-missing"),
        (tmp_path / "c.safetensors", "weights-unreadable"),
        (tmp_path / "broken.safetensors", "weights-unreadable"),
    ):
        with pytest.raises(PortraitDiffusionError) as caught:
            load_denoiser(where)
        assert caught.value.code == code and caught.value.hint


def test_the_shipped_prior_loads_and_all_starter_weights_stay_small() -> None:
    codec, denoiser = load_codec(), load_denoiser()
    assert codec.factor == 4 and denoiser.steps == 1000
    assert codec.decode(codec.encode(torch.rand(1, 3, 32, 32))).shape == (1, 3, 32, 32)
    assert sum(weight.size for weight in starter_weights()) < 40e6
    assert all(weight.state == "ok" for weight in starter_weights()), "SHA256SUMS lists what is there"
