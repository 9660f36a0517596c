"""Loading codec and denoiser: the shipped starter files (or a training run's), or a diffusers folder.

A starter file is one fp16 safetensors; its configuration is JSON in the metadata, so the same code loads any size. A diffusers
folder has vae/, or unet/, scheduler/, text_encoder/ and tokenizer/, each with its config.json.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from portrait_backend.diffusion import STARTER
from portrait_backend.diffusion.codec import Codec
from portrait_backend.diffusion.condition import PromptCondition, ViewCondition, ViewConditionConfig
from portrait_backend.diffusion.denoiser import Denoiser
from portrait_backend.models import weights_path
from portrait_shared.errors import PortraitDiffusionError

CODEC_WEIGHTS, DENOISER_WEIGHTS = "codec.safetensors", "denoiser.safetensors"


def load_codec(where: str | Path = STARTER, dtype: torch.dtype = torch.float32) -> Codec:
    """Return a codec in `dtype`, evaluation mode, without gradients.

    where: "starter", a file that `save_codec` wrote, or a diffusers folder with vae/. PortraitDiffusionError ``weights-missing`` or
    ``weights-unreadable``.
    """
    path = weights_path(where, CODEC_WEIGHTS)
    if path.is_file():
        record, tensors = read_weights(path, "codec")
        codec = Codec(AutoencoderTiny(**record["model"]))
        fill_weights(codec.model, tensors, path)
    else:
        config = _component(path, "vae")
        kind = AutoencoderTiny if config["_class_name"] == "AutoencoderTiny" else AutoencoderKL
        codec = Codec(_pretrained(kind, path, "vae", torch_dtype=dtype))
    return codec.to(dtype=dtype).requires_grad_(False).eval()


def load_denoiser(where: str | Path = STARTER, dtype: torch.dtype = torch.float32) -> Denoiser:
    """Return a denoiser in evaluation mode, without gradients; `where` and errors as in `load_codec`.

    dtype: of a diffusers folder's networks, which are large; a starter file comes in fp32.
    """
    path = weights_path(where, DENOISER_WEIGHTS)
    if path.is_dir():
        return _load_diffusers(path, dtype)
    record, tensors = read_weights(path, "denoiser")
    condition = ViewCondition(ViewConditionConfig(**record["condition"]))
    denoiser = Denoiser(UNet2DConditionModel(**record["unet"]), DDIMScheduler(**record["scheduler"]), condition)
    fill_weights(denoiser, tensors, path)
    return denoiser.float().requires_grad_(False).eval()


def save_codec(codec: Codec, path: Path, weights: dict[str, Tensor] | None = None, **facts: str) -> None:
    """Write a starter codec file; `weights`: another state dict for the same model, e.g. the averaged one."""
    write_weights(path, weights or codec.model.state_dict(), "codec", {"model": _config(codec.model)}, facts)


def save_denoiser(denoiser: Denoiser, path: Path, weights: dict[str, Tensor] | None = None, **facts: str) -> None:
    """Write a starter denoiser file (UNet and view embedding; a text encoder can't be stored this way)."""
    if not isinstance(denoiser.condition, ViewCondition):
        raise ValueError("only denoisers with a learned view embedding are stored as a starter file")
    record = {
        "unet": _config(denoiser.unet),
        "scheduler": _config(denoiser.scheduler),
        "condition": denoiser.condition.config_dict(),
    }
    write_weights(path, weights or denoiser.state_dict(), "denoiser", record, facts)


def _load_diffusers(folder: Path, dtype: torch.dtype) -> Denoiser:
    for part in ("unet", "text_encoder"):
        _component(folder, part)
    _component(folder, "scheduler", "scheduler_config.json")
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError as error:
        raise PortraitDiffusionError(
            "extra-missing", str(error), "Install the full-scale parts: python3 -m pip install -c constraints.txt '.[full]'"
        ) from error
    unet = _pretrained(UNet2DConditionModel, folder, "unet", torch_dtype=dtype)
    scheduler = _pretrained(DDIMScheduler, folder, "scheduler")
    text = _pretrained(CLIPTextModel, folder, "text_encoder", dtype=dtype)
    tokenizer = _pretrained(CLIPTokenizer, folder, "tokenizer")
    return Denoiser(unet, scheduler, PromptCondition(text, tokenizer)).requires_grad_(False).eval()


def _pretrained(kind: Any, folder: Path, part: str, **options: Any) -> Any:
    """Load a part of a diffusers folder; PortraitDiffusionError ``weights-unreadable`` says which one is missing or cut."""
    try:
        return kind.from_pretrained(str(folder), subfolder=part, local_files_only=True, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _unreadable(folder / part, f"complete {part}", error) from error


def _component(folder: Path, name: str, file: str = "config.json") -> dict[str, Any]:
    """Return the config of a part of a diffusers folder."""
    path = folder / name / file
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PortraitDiffusionError(
            "weights-missing", f"{folder} has no {name}/{file}", "Name a folder in the layout of diffusers (unet/, vae/, ...)"
        ) from error
    except (OSError, ValueError) as error:
        raise PortraitDiffusionError("weights-unreadable", f"{path} is not readable ({error})", "Copy the folder again") from error
    return config


def _config(model: Any) -> dict[str, Any]:
    """Return the arguments that make the same diffusers object again (its config holds more than those)."""
    arguments = inspect.signature(type(model).__init__).parameters
    return {k: v for k, v in dict(model.config).items() if k in arguments}


def write_weights(path: Path, tensors: dict[str, Tensor], kind: str, record: dict[str, Any], facts: dict[str, str]) -> None:
    """Write tensors as fp16 with the kind of file, its configuration and `facts` as metadata."""
    half = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in tensors.items()}
    save_file(half, path, metadata={"kind": kind, "config": json.dumps(record, sort_keys=True)} | facts)


def read_weights(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return configuration and float32 tensors of a file that `write_weights` wrote; PortraitDiffusionError ``weights-unreadable``."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - not a dict
        if metadata.get("kind") != kind:
            raise ValueError(f"it holds {metadata.get('kind', 'something else')!r}")
        return json.loads(metadata["config"]), tensors
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise _unreadable(path, kind, error) from error


def fill_weights(model: torch.nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load a state dict; PortraitDiffusionError ``weights-unreadable`` if it is not this model's."""
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise _unreadable(path, "weights for this configuration", error) from error


def _unreadable(path: Path, kind: str, error: Exception) -> PortraitDiffusionError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return PortraitDiffusionError("weights-unreadable", f"{path} is not a {kind} file ({reason})", "Copy the file again, or train it again")
