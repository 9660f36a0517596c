"""Read the image files people really have: any rotation, colour mode and bit depth becomes 8-bit sRGB.

Pixel counts are checked before a pixel is decoded, and only formats that decode without running other
programs are accepted (no EPS), so a file from a stranger can't exhaust the memory.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import struct
import warnings as python_warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from portrait_shared.errors import PortraitDiffusionError

MAX_PIXELS = 100_000_000
"""Larger images are refused before decoding (100 MP of 8-bit RGB are 300 MB)."""
MAX_FILE_BYTES = 500_000_000
MAX_SIDE = 4096
"""Larger images are reduced on reading: a face fills 512 px of the crop, more photo pixels can't be seen."""
MIN_SIDE = 64
"""The smallest usable face is 64 px wide, so is the smallest photo."""
FORMATS = ("JPEG", "MPO", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000", "TGA", "AVIF")
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1", b"heif")
RAW_SUFFIXES = (".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".pef", ".srw")
DECODER_ERRORS = (
    OSError, SyntaxError, EOFError, ValueError, LookupError, RuntimeError, TypeError, ArithmeticError, AttributeError, AssertionError,
    struct.error, zlib.error,
)  # fmt: skip
"""What Pillow and the libraries behind it raise for a damaged file, found by fuzzing (tests/faults/fuzz.py)."""
ADVICE = "Export the photo as JPEG or PNG and try again"


@dataclass(frozen=True)
class Photo:
    """A decoded photo: rgb (H, W, 3) uint8 sRGB, alpha (H, W) uint8 or None, file name, sha256 of the file, warnings.

    Colours are straight (not multiplied by alpha). alpha is None unless it carries a real cut-out.
    """

    rgb: NDArray[np.uint8]
    alpha: NDArray[np.uint8] | None
    source: str
    sha256: str
    warnings: tuple[str, ...] = ()


def read_photo(path: Path) -> Photo:
    """Read the image file `path` as 8-bit sRGB in its upright orientation, at most MAX_SIDE px a side.

    Raises PortraitDiffusionError with codes image-missing, image-is-directory, image-no-permission, image-empty,
    image-not-recognised, image-raw, image-heic-unsupported, image-too-large, image-too-small, image-truncated,
    image-unreadable.
    """
    path = Path(path)
    data = _file_bytes(path)
    notes: list[str] = []
    with _quiet_decoders(), _open(data, path) as image:
        width, height = image.size
        _check_size(width, height, path)
        frames = _frames(image, path)
        if frames > 1 and image.format not in ("MPO", "TIFF"):
            notes.append(f"{path.name} is animated: its first frame of {frames} was used")
        if image.format in ("JPEG", "MPO") and max(width, height) >= 2 * MAX_SIDE:
            image.draft(None, (MAX_SIDE, MAX_SIDE))  # decodes at 1/2, 1/4 or 1/8 size, never below MAX_SIDE
        rgb, alpha = _decode(image, path, notes)
    if max(width, height) > MAX_SIDE:
        rgb, alpha = _reduced(rgb, alpha, MAX_SIDE / max(width, height), width, height)
        notes.append(f"{path.name} was reduced from {width} x {height} to at most {MAX_SIDE} px a side")
    if alpha is not None and not _is_cut_out(alpha):
        if alpha.max() < 128:
            notes.append(f"{path.name} is almost fully transparent: its alpha channel was ignored")
        alpha = None
    return Photo(np.ascontiguousarray(rgb), alpha, path.name, hashlib.sha256(data).hexdigest(), tuple(notes))


def _file_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise PortraitDiffusionError("image-is-directory", f"{path} is a folder", "Give the path of one photo in it")
    if not path.exists():
        raise PortraitDiffusionError("image-missing", f"there is no file {path}", "Check the path and its spelling")
    if path.suffix.lower() in RAW_SUFFIXES:
        raise PortraitDiffusionError("image-raw", f"{path.name} is a camera raw file", ADVICE)
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise PortraitDiffusionError(
                "image-too-large", f"{path.name} has {size / 1e6:.0f} MB", f"{ADVICE} (limit {MAX_FILE_BYTES // 10**6} MB)"
            )
        data = path.read_bytes()
    except PermissionError as error:
        raise PortraitDiffusionError("image-no-permission", f"{path} may not be read", "Change its permissions or copy it") from error
    except OSError as error:
        raise PortraitDiffusionError(
            "image-unreadable", f"{path} could not be read ({error.strerror})", "Copy the file and try again"
        ) from error
    if not data:
        raise PortraitDiffusionError("image-empty", f"{path.name} is empty (0 bytes)", "Copy or download the photo again")
    return data


@contextmanager
def _quiet_decoders() -> Iterator[None]:
    """Silence Pillow's warnings: about sizes, where `_check_size` decides (its error at twice the limit stays), and about damage."""
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore")
        yield


def _frames(image: Image.Image, path: Path) -> int:
    """Return how many pictures the file holds; the ways to count them run through all of it."""
    try:
        return int(getattr(image, "n_frames", 1))
    except DECODER_ERRORS as error:
        raise _damaged(path, error) from error


def _open(data: bytes, path: Path) -> Image.Image:
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    if data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS:
        formats.append("HEIF")
        _register_heif(path)
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:
        raise PortraitDiffusionError("image-not-recognised", f"{path.name} is not an image this program can read", ADVICE) from error
    except Image.DecompressionBombError as error:
        raise _too_large(path, "more than 178 megapixels") from error
    except DECODER_ERRORS as error:
        raise PortraitDiffusionError("image-unreadable", f"{path.name} is damaged ({error})", ADVICE) from error


def _register_heif(path: Path) -> None:
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError as error:
        hint = "Install it with `python3 -m pip install pillow-heif`, or export the photo as JPEG"
        raise PortraitDiffusionError(
            "image-heic-unsupported", f"{path.name} is a HEIC photo and pillow-heif is not installed", hint
        ) from error


def _too_large(path: Path, size: str) -> PortraitDiffusionError:
    return PortraitDiffusionError(
        "image-too-large", f"{path.name} has {size}, the limit is {MAX_PIXELS // 10**6} megapixels", "Reduce it or crop it to the person"
    )


def _check_size(width: int, height: int, path: Path) -> None:
    if width * height > MAX_PIXELS:
        raise _too_large(path, f"{width} x {height} = {width * height / 1e6:.0f} megapixels")
    if min(width, height) < MIN_SIDE:
        raise PortraitDiffusionError(
            "image-too-small", f"{path.name} has only {width} x {height} pixels", f"Use a photo of at least {MIN_SIDE} px a side"
        )


def _decode(image: Image.Image, path: Path, notes: list[str]) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Return sRGB (H, W, 3) and alpha (H, W) or None, EXIF rotation applied."""
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
        return _to_srgb(upright, path, notes)
    except Image.DecompressionBombError as error:
        raise _too_large(path, "too many pixels") from error
    except DECODER_ERRORS as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: BaseException) -> PortraitDiffusionError:
    cut = any(word in str(error).lower() for word in ("truncated", "broken data stream", "unexpected end", "incomplete"))
    code, what = ("image-truncated", "is cut off: part of the file is missing") if cut else ("image-unreadable", f"is damaged ({error})")
    return PortraitDiffusionError(code, f"{path.name} {what}", "Copy or download the photo again")


def _to_srgb(image: Image.Image, path: Path, notes: list[str]) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F":
        grey = _deep_grey(np.asarray(image), path)
        return np.repeat(grey[..., None], 3, 2), None
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A"))
        image = image.convert("RGB")
    elif image.mode in ("1", "P", "LAB", "HSV", "YCbCr"):
        image = image.convert("RGB")
    if profile and image.mode in ("RGB", "CMYK", "L"):
        image = _apply_profile(image, profile, path, notes)
    elif image.mode == "CMYK":
        notes.append(f"{path.name} is CMYK without a colour profile: its colours are approximate")
    return np.asarray(image.convert("RGB")), alpha


def _apply_profile(image: Image.Image, profile: bytes, path: Path, notes: list[str]) -> Image.Image:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        if image.mode != "CMYK" and b"sRGB" in profile[:4096]:
            return image
        notes.append(f"the colour profile of {path.name} could not be used ({error}): its colours are approximate")
        return image
    return converted if converted is not None else image


def _deep_grey(values: NDArray[np.generic], path: Path) -> NDArray[np.uint8]:
    """Scale deep grey to 8 bits: integers count to 65535; floats to 1, 255 or 65535, the first that holds their maximum."""
    grey = np.nan_to_num(values.astype(np.float64))
    if grey.min() < 0 or grey.max() > 65535:
        raise PortraitDiffusionError("image-unreadable", f"{path.name} has grey values from {grey.min():g} to {grey.max():g}", ADVICE)
    white = next(w for w in (1, 255, 65535) if grey.max() <= w) if np.issubdtype(values.dtype, np.floating) else 65535
    return np.round(grey * (255 / white)).astype(np.uint8)


def _reduced(
    rgb: NDArray[np.uint8], alpha: NDArray[np.uint8] | None, scale: float, width: int, height: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Shrink by area averaging so that the longer side of the file (width x height) gets `scale` times its length."""
    longest = round(max(width, height) * scale)
    factor = longest / max(rgb.shape[:2])
    size = max(1, round(rgb.shape[1] * factor)), max(1, round(rgb.shape[0] * factor))
    small = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))
    return small, None if alpha is None else np.asarray(Image.fromarray(alpha).resize(size, Image.Resampling.BOX))


def _is_cut_out(alpha: NDArray[np.uint8]) -> bool:
    """Tell whether alpha separates something: at least 1 % clear and 1 % solid pixels."""
    return bool((alpha < 64).mean() > 0.01 and (alpha > 192).mean() > 0.01)
