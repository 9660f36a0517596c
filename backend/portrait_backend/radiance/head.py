"""The Head: a tri-plane radiance field with everything needed to render it.

Geometry planes drive density, appearance planes drive colour and features (they may be the same). The decoder, the
density activation, the plane axes, the grid depth and the box are data of the head, so that any prior fits in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from portrait_backend.radiance import renderer
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.decoder import FEATURES, Decoder, DensityActivation
from portrait_backend.radiance.density_grid import FINE_SAMPLES, RESOLUTION, SAMPLES, DensityGrid
from portrait_backend.radiance.picture import PictureLattice, draw
from portrait_backend.radiance.renderer import MEMORY_BUDGET_MB, RenderOutput
from portrait_backend.radiance.super_resolution import SuperResolution, upsample_bicubic, with_smooth_edge
from portrait_backend.radiance.triplane import STARTER_AXES, Axes, Padding, sample_planes, to_channels_last, to_neutral

Upsample = Literal["direct", "super_resolution"]
Point = tuple[float, float, float]
ORIGIN: Point = (0.0, 0.0, 0.0)


class TriPlane:
    """Three feature planes of grid depth D over the box [-half_extent, half_extent]^3 around `centre`, head units.

    features (3, C * D, H, W), slice-major (d * C + c), rows upward; axes[k] = world axes (along W, along H, along D) of plane k;
    reduce: "sum" or "mean" over the planes; padding: see `triplane`. Kept channels last in `planes` (1, 3, D, H, W, C) for sampling.
    A tri-plane is a snapshot: after an optimiser changed the tensor it was made of, make a new one (gradients flow to that tensor).
    """

    def __init__(
        self,
        features: Tensor,
        depth: int = 1,
        axes: Axes = STARTER_AXES,
        half_extent: float = 0.5,
        reduce: Literal["sum", "mean"] = "sum",
        padding: Padding = "border",
        centre: Point = ORIGIN,
    ) -> None:
        if features.ndim != 4 or features.shape[0] != 3 or depth < 1 or features.shape[1] % depth:
            raise ValueError(f"tri-plane features must be (3, C * {depth}, H, W), got {tuple(features.shape)}")
        self._set(to_channels_last(features, depth), axes, half_extent, reduce, padding, centre)

    def _set(self, planes: Tensor, axes: Axes, half_extent: float, reduce: str, padding: Padding, centre: Point) -> None:
        if sorted(map(sorted, axes)) != [[0, 1, 2]] * 3:
            raise ValueError(f"each plane's axes must be a permutation of (0, 1, 2), got {axes}")
        if reduce not in ("sum", "mean"):
            raise ValueError(f"unknown reduction {reduce!r}; known: sum, mean")
        if not half_extent > 0:
            raise ValueError(f"half_extent must be positive, got {half_extent}")
        if padding not in ("border", "zeros"):
            raise ValueError(f"unknown padding {padding!r}; known: border, zeros")
        self.planes, self.axes, self.half_extent, self.reduce, self.padding = planes, axes, float(half_extent), reduce, padding
        self.centre = centre

    def with_planes(self, planes: Tensor) -> TriPlane:
        """Return a tri-plane of the same conventions made of channels-last planes (1, 3, D, H, W, C), which are not copied."""
        if planes.ndim != 6 or planes.shape[:2] != (1, 3):
            raise ValueError(f"channels-last planes must be (1, 3, D, H, W, C), got {tuple(planes.shape)}")
        result = object.__new__(TriPlane)
        result._set(planes, self.axes, self.half_extent, self.reduce, self.padding, self.centre)
        return result

    def placed(self, half_extent: float, centre: Point) -> TriPlane:
        """Return the same planes over another box."""
        result = object.__new__(TriPlane)
        result._set(self.planes, self.axes, half_extent, self.reduce, self.padding, centre)
        return result

    def normalised(self, points: Tensor) -> Tensor:
        """Return points (N, 3) in units of the box, [-1, 1]."""
        return (points if self.centre == ORIGIN else points - points.new_tensor(self.centre)) / self.half_extent

    @property
    def depth(self) -> int:
        """Slices per plane, D."""
        return self.planes.shape[2]

    @property
    def channels(self) -> int:
        """Channels per slice, C."""
        return self.planes.shape[5]

    @property
    def features(self) -> Tensor:
        """The neutral layout (3, C * D, H, W)."""
        return to_neutral(self.planes)

    def sample(self, points: Tensor, gradient: Tensor | None = None) -> Tensor:
        """Sample at points (N, 3) in head units: (N, C); outside the box, what the padding says. gradient: see `sample_planes`."""
        sampled = sample_planes(self.planes, self.normalised(points)[None], self.axes, self.padding, gradient)[0]
        return sampled / 3 if self.reduce == "mean" else sampled

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> TriPlane:
        """Return it on `device`, as `dtype`."""
        return self.with_planes(self.planes.to(device=device, dtype=dtype))


@dataclass(frozen=True)
class Head:
    """A head as a radiance field; render it, mesh it (density, colour), fit it (`with_planes`), save it.

    meta: JSON data that travels with the file (provider, seed, ...). Density is per head unit and 0 outside the box, or outside the
    smaller box of half sides `bounds` (x, y, z) around the planes' centre where a prior was trained to be empty, or where `region`,
    cells (n, n, n) of the planes' box indexed z, y, x, is False.
    """

    geometry: TriPlane
    appearance: TriPlane
    decoder: Decoder
    activation: DensityActivation = field(default_factory=DensityActivation)
    super_resolution: SuperResolution | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    bounds: tuple[float, float, float] | None = None
    region: Tensor | None = field(default=None, compare=False)
    _made: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        channels = self.decoder.hidden1.in_features
        for name, plane in (("geometry", self.geometry), ("appearance", self.appearance)):
            if plane.channels != channels:
                raise ValueError(f"the decoder reads {channels} channels, the {name} planes have {plane.channels}")

    @property
    def half_extent(self) -> float:
        """Half the side of the box around the origin that holds the planes' box, head units."""
        return self.geometry.half_extent + max(map(abs, self.geometry.centre))

    @property
    def surface_density(self) -> float:
        """Density at the surface, per head unit."""
        return self.activation.surface

    @property
    def mesh_level(self) -> float:
        """Where meshes are cut (`DensityActivation`)."""
        return self.activation.mesh_level

    def inside(self, points: Tensor) -> Tensor:
        """Whether points (N, 3) lie where there may be density (N,)."""
        box = self.geometry
        at = box.normalised(points)
        within = (at.abs() <= (1.0 if self.bounds is None else at.new_tensor(self.bounds).div(box.half_extent).clamp(max=1))).all(-1)
        if self.region is None:
            return within
        n = len(self.region)
        x, y, z = ((at.detach() + 1) * (n / 2)).long().clamp(0, n - 1).unbind(-1)
        return within & self.region[z, y, x]

    def within(self, region: Tensor) -> Head:
        """Return the head without what lies outside the cells `region` (n, n, n), bool."""
        return replace(self, region=region.to(self.geometry.planes.device), _made={})

    def _density(self, raw: Tensor, points: Tensor) -> Tensor:
        return self.activation(raw) * self.inside(points)

    @property
    def colours_apart(self) -> bool:
        """Whether colours come from other planes than the density, so that asking for one doesn't give the other."""
        return self.appearance is not self.geometry

    def density(self, points: Tensor) -> Tensor:
        """Density (N,) per head unit at points (N, 3)."""
        return self._density(self.decoder(self.geometry.sample(points), outputs=1)[0], points)

    def values(self, points: Tensor, features: bool = False) -> Tensor:
        """Return rgb (N, 3) within [-0.01, 1.01], or all features (N, 32), at points (N, 3)."""
        return self.decoder(self.appearance.sample(points), 1 + FEATURES if features else 4)[1]

    def colour(self, points: Tensor) -> Tensor:
        """Colour (N, 3) in [0, 1] at points (N, 3)."""
        return self.decoder(self.appearance.sample(points), outputs=4)[1].clamp(0, 1)

    def decode(self, points: Tensor, features: bool = False) -> tuple[Tensor, Tensor]:
        """Density (N,) and rgb (N, 3), or all features (N, 32), at points (N, 3); rgb is within [-0.01, 1.01]."""
        if self.colours_apart:
            return self.density(points), self.values(points, features)
        raw, values = self.decoder(self.geometry.sample(points), 1 + FEATURES if features else 4)
        return self._density(raw, points), values

    def with_planes(self, geometry: TriPlane | None = None, appearance: TriPlane | None = None) -> Head:
        """Return the head with other planes; what is not given stays. Shared planes are replaced together by `geometry` alone."""
        shared = self.appearance is self.geometry
        made = self._made if geometry is None else {}
        geometry = geometry or self.geometry
        return replace(self, geometry=geometry, appearance=appearance or (geometry if shared else self.appearance), _made=made)

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Weights of the decoder and the super-resolution, not the planes."""
        yield from self.decoder.parameters()
        if self.super_resolution is not None:
            yield from self.super_resolution.parameters()

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Head:
        """Return the head on `device`, as `dtype`; the networks are moved in place."""
        geometry = self.geometry.to(device, dtype)
        appearance = geometry if self.appearance is self.geometry else self.appearance.to(device, dtype)
        for network in (self.decoder, self.super_resolution):
            if network is not None:
                network.to(device=device, dtype=dtype)
        region = None if self.region is None else self.region.to(device)
        return replace(self, geometry=geometry, appearance=appearance, region=region, _made={})

    def density_grid(self, resolution: int = RESOLUTION) -> DensityGrid:
        """Return the density lattice, built at first use and again when the planes or the decoder have changed."""
        planes = self.geometry.planes
        return self._kept(f"grid {resolution}", lambda: DensityGrid.build(self, resolution, device=planes.device, dtype=planes.dtype))

    @torch.no_grad()
    def picture_lattice(self) -> PictureLattice:
        """Return the lattice that pictures take the matter from, kept as `density_grid` is; on the CPU in float32 only."""
        return self._kept("picture", lambda: PictureLattice.of(self.density_grid().refined(self)))

    def picture(self, camera: Camera, *, normals: bool = False) -> RenderOutput:
        """Render without gradients for looking at: `render`'s quality in a fraction of the time, once a finer density lattice is built."""
        planes = self.geometry.planes
        with torch.no_grad():
            if planes.device.type == "cpu" and planes.dtype == torch.float32:
                return draw(self, camera, self.picture_lattice(), normals=normals)
            grid = self._kept("fine grid", lambda: self.density_grid().refined(self))
            return renderer.render(self, camera, grid=grid, samples=FINE_SAMPLES, normals=normals)

    def _kept(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what `make` makes of the density as it is now, made at most once."""
        sources = (self.geometry.planes, *self.decoder.parameters())
        state = tuple((id(x), 0 if x.is_inference() else x._version) for x in sources)
        if self._made.get("state") != state:
            self._made.clear()
            self._made["state"] = state
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def render(
        self,
        camera: Camera,
        size: int | None = None,
        *,
        upsample: Upsample = "direct",
        grid: DensityGrid | None = None,
        samples: int = SAMPLES,
        features: bool = False,
        normals: bool = False,
        background: Tensor | None = None,
        generator: torch.Generator | None = None,
        memory_budget_mb: float = MEMORY_BUDGET_MB,
    ) -> RenderOutput:
        """Render `size` px wide (default: the camera's size).

        upsample "direct" renders the field at full size; "super_resolution" renders features at a quarter of it and upsamples (rgb by
        the network; alpha, depth and normals without it; `features` stay at the rendered size). ValueError where there is no such network.
        """
        camera = camera if size is None else camera.resized(size)
        grid = grid or self.density_grid()
        options: dict[str, Any] = {"grid": grid, "samples": samples, "normals": normals, "generator": generator}
        options["memory_budget_mb"] = memory_budget_mb
        if upsample == "direct":
            return renderer.render(self, camera, features=features, background=background, **options)
        if upsample != "super_resolution":
            raise ValueError(f"unknown upsample {upsample!r}; known: direct, super_resolution")
        if self.super_resolution is None:
            raise ValueError("this head has no super-resolution network; use upsample='direct'")
        scale = self.super_resolution.config.scale
        if camera.width % scale or camera.height % scale:
            raise ValueError(f"super-resolution needs a size divisible by {scale}, got {camera.width} x {camera.height}")
        small = renderer.render(self, camera.resized(camera.width // scale), features=True, **options)
        return upsampled(small, self.super_resolution, features, background)

    def save(self, path: Path | str) -> None:
        """Write one safetensors file (planes as fp16); see `head_file`."""
        from portrait_backend.radiance.head_file import save_head

        save_head(self, Path(path))

    @staticmethod
    def load(path: Path | str) -> Head:
        """Read a head; PortraitDiffusionError "head-unreadable" for anything that is not one."""
        from portrait_backend.radiance.head_file import load_head

        return load_head(Path(path))


def upsampled(small: RenderOutput, network: SuperResolution, features: bool = False, background: Tensor | None = None) -> RenderOutput:
    """Apply the super-resolution network to a render that has features; alpha smooth, depth and normals from the nearest hit pixel."""
    if small.features is None:
        raise ValueError("super-resolution needs a render with features=True")
    scale = network.config.scale
    fine, alpha = with_smooth_edge(network(small.features.permute(2, 0, 1)[None]), small.features[..., :3], small.alpha, scale)
    rgb, alpha = fine[0].permute(1, 2, 0), alpha[0, 0]
    depth = F.interpolate(small.depth[None, None], scale_factor=scale, mode="nearest")[0, 0]
    normals = None
    if small.normals is not None:
        normals = F.normalize(upsample_bicubic(small.normals.permute(2, 0, 1)[None], scale)[0].permute(1, 2, 0), dim=-1)
    if background is not None:
        rgb = rgb + (1 - alpha[..., None]) * background
    return RenderOutput(rgb, alpha, depth, small.features if features else None, normals)
