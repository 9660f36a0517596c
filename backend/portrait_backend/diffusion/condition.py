"""What the denoiser is told about a view: an interface with a learned view embedding (starter) and CLIP prompts (full scale)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Domain = Literal["rgb", "normal"]
DOMAINS: tuple[Domain, ...] = ("rgb", "normal")
FRONT, OVERHEAD = 45.0, 60.0
"""Prompts: within this azimuth of the front (or back) it is a front (back) view; above this elevation an overhead one. Degrees."""


class ConditionEncoder(nn.Module, ABC):
    """Turns views into the denoiser's cross-attention tokens (B, L, D), D = `width`."""

    width: int

    @abstractmethod
    def encode(
        self, azimuth: Tensor, elevation: Tensor, domain: Domain | Sequence[Domain] = "rgb", reference: Tensor | None = None
    ) -> Tensor:
        """Return tokens (B, L, D) of views at azimuth and elevation (B,) in degrees, as `Camera.orbit` counts them.

        domain: of all, or one per view. reference (B or 1, 4, H, W): the aligned portrait, rgb over mid grey and matte, for encoders
        that can make use of it; None where the sitter is unknown.
        """

    @abstractmethod
    def null(self, batch: int) -> Tensor:
        """Return the unconditional tokens (B, L, D)."""


@dataclass(frozen=True)
class ViewConditionConfig:
    """Sizes of the learned view embedding: token width, view tokens, azimuth harmonics, side and width of the reference's network."""

    width: int = 96
    tokens: int = 4
    harmonics: int = 4
    reference_size: int = 64
    reference_width: int = 32


class ViewCondition(ConditionEncoder):
    """Starter scale: a small network on (azimuth, elevation, domain), and convolutions on the reference portrait; nulls are learned.

    The reference makes the denoiser's idea of an unseen side that of this sitter: hair, build, colours. 4 x 4 tokens.
    """

    def __init__(self, config: ViewConditionConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or ViewConditionConfig()
        self.width = c.width
        features = 2 * c.harmonics + 4 + len(DOMAINS)
        self.view = nn.Sequential(nn.Linear(features, 2 * c.width), nn.SiLU(), nn.Linear(2 * c.width, c.tokens * c.width))
        widths = [4, c.reference_width, 2 * c.reference_width, 2 * c.reference_width, c.width]
        steps: list[nn.Module] = []
        for before, after in pairwise(widths):
            steps += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.SiLU()]
        self.reference = nn.Sequential(*steps[:-1])
        side = c.reference_size // 16
        self.position = nn.Parameter(0.02 * torch.randn(side * side, c.width))
        self.null_view = nn.Parameter(0.02 * torch.randn(c.tokens, c.width))
        self.null_reference = nn.Parameter(0.02 * torch.randn(side * side, c.width))

    def encode(
        self, azimuth: Tensor, elevation: Tensor, domain: Domain | Sequence[Domain] = "rgb", reference: Tensor | None = None
    ) -> Tensor:
        """Return tokens (B, tokens + 16, width); see `ConditionEncoder.encode`."""
        view = self.view(self._features(azimuth, elevation, domain)).view(len(azimuth), self.config.tokens, self.width)
        return torch.cat([view, self.encode_reference(reference, len(azimuth))], 1)

    def encode_reference(self, reference: Tensor | None, batch: int) -> Tensor:
        """Return the reference's tokens (B, 16, width); the learned null where there is none."""
        if reference is None:
            return self.null_reference.expand(batch, -1, -1)
        size = self.config.reference_size
        small = F.interpolate(reference, size=(size, size), mode="area")
        tokens: Tensor = self.reference(small * 2 - 1).flatten(2).transpose(1, 2) + self.position
        return tokens.expand(batch, -1, -1)

    def null(self, batch: int) -> Tensor:
        """Return the learned unconditional tokens."""
        return torch.cat([self.null_view, self.null_reference]).expand(batch, -1, -1)

    def _features(self, azimuth: Tensor, elevation: Tensor, domain: Domain | Sequence[Domain]) -> Tensor:
        """Harmonics of azimuth and elevation and the domain as one-hot: (B, F)."""
        domains = [domain] * len(azimuth) if isinstance(domain, str) else list(domain)
        unknown = set(domains) - set(DOMAINS)
        if unknown or len(domains) != len(azimuth):
            raise ValueError(f"domain must be one of {', '.join(DOMAINS)} for each of {len(azimuth)} views, got {domain!r}")
        a, e = torch.deg2rad(azimuth)[:, None], torch.deg2rad(elevation)[:, None]
        k = torch.arange(1, self.config.harmonics + 1, device=a.device, dtype=a.dtype)
        turns = [torch.sin(k * a), torch.cos(k * a), torch.sin(k[:2] * 2 * e), torch.cos(k[:2] * 2 * e)]
        kind = torch.tensor([DOMAINS.index(d) for d in domains], device=a.device)
        return torch.cat([*turns, F.one_hot(kind, len(DOMAINS)).to(a.dtype)], 1)

    def config_dict(self) -> dict[str, int]:
        """Return the configuration as JSON data."""
        return asdict(self.config)


def view_name(azimuth: float, elevation: float) -> str:
    """Return the prompt's name of a view: front, side, back or overhead (METHOD: +-45 degrees, overhead above 60)."""
    if elevation > OVERHEAD:
        return "overhead"
    turn = abs((azimuth + 180) % 360 - 180)
    return "front" if turn <= FRONT else "back" if turn >= 180 - FRONT else "side"


class PromptCondition(ConditionEncoder):
    """Full scale: CLIP text tokens of a view prompt; `reference` is not used, the text model knows no sitter."""

    def __init__(self, text_encoder: Any, tokenizer: Any, subject: str = "a portrait photo of a person", negative: str = "") -> None:
        super().__init__()
        self.text_encoder, self.tokenizer = text_encoder, tokenizer
        self.subject, self.negative = subject, negative
        self.width = int(text_encoder.config.hidden_size)
        self._known: dict[str, Tensor] = {}

    def prompt(self, azimuth: float, elevation: float, domain: Domain) -> str:
        """Return the prompt of a view."""
        kind = "a normal map of " if domain == "normal" else ""
        return f"{kind}{self.subject}, {view_name(azimuth, elevation)} view"

    def encode(
        self, azimuth: Tensor, elevation: Tensor, domain: Domain | Sequence[Domain] = "rgb", reference: Tensor | None = None
    ) -> Tensor:
        """Return tokens (B, 77, D); see `ConditionEncoder.encode`."""
        domains: list[Domain] = [domain] * len(azimuth) if isinstance(domain, str) else list(domain)
        return self._tokens([self.prompt(float(a), float(e), d) for a, e, d in zip(azimuth, elevation, domains, strict=True)])

    def null(self, batch: int) -> Tensor:
        """Return the tokens of the negative prompt."""
        return self._tokens([self.negative]).expand(batch, -1, -1)

    def _tokens(self, prompts: list[str]) -> Tensor:
        """Tokens of prompts (B, 77, D); the text encoder is asked once for each: there are eight views and domains."""
        size, new = int(self.tokenizer.model_max_length), [p for p in dict.fromkeys(prompts) if p not in self._known]
        if new:
            ids = self.tokenizer(new, padding="max_length", max_length=size, truncation=True, return_tensors="pt").input_ids
            with torch.no_grad():
                tokens: Tensor = self.text_encoder(ids.to(self.text_encoder.device))[0]
            self._known |= dict(zip(new, tokens, strict=True))
        return torch.stack([self._known[prompt] for prompt in prompts])
