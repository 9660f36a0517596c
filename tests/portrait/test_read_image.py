"""Files as people have them: orientation, colour modes, depth, alpha, damage."""

from __future__ import annotations

import hashlib
import struct
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from portrait_backend.portrait import read_image
from portrait_backend.portrait.read_image import read_photo
from portrait_shared.errors import PortraitDiffusionError

# stored pixels = photo transformed by the inverse of what the EXIF tag asks for
EXIF_STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 3),
}


@pytest.fixture(scope="module")
def photo(astronaut: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A photo (96, 160, 3) that no rotation or mirroring maps to itself."""
    return np.ascontiguousarray(astronaut[20:116, 130:290])


def code_of(path: Path) -> str:
    """Return the error code that reading `path` ends in."""
    with pytest.raises(PortraitDiffusionError) as caught:
        read_photo(path)
    assert caught.value.hint
    return caught.value.code


@pytest.mark.parametrize("orientation", EXIF_STORED)
def test_exif_orientation_is_undone(photo: NDArray[np.uint8], tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(EXIF_STORED[orientation](photo))).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_photo(tmp_path / "a.png").rgb, photo)


def test_hash_name_and_plain_rgb(photo: NDArray[np.uint8], tmp_path: Path) -> None:
    path = tmp_path / "ä photo.png"
    Image.fromarray(photo).save(path)
    result = read_photo(path)
    assert result.source == path.name and result.alpha is None and result.warnings == ()
    assert result.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_cmyk_jpeg_keeps_its_colours(photo: NDArray[np.uint8], tmp_path: Path) -> None:
    Image.fromarray(photo).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    result = read_photo(tmp_path / "a.jpg")
    assert np.abs(result.rgb.astype(int) - photo).mean() < 4
    assert "CMYK" in result.warnings[0]


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_16_bit_rgb_and_grey_are_scaled_not_clipped(photo: NDArray[np.uint8], tmp_path: Path, suffix: str) -> None:
    deep = photo.astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / f"rgb{suffix}"), deep[..., ::-1])
    cv2.imwrite(str(tmp_path / f"grey{suffix}"), deep[..., 0])
    assert np.abs(read_photo(tmp_path / f"rgb{suffix}").rgb.astype(int) - photo).max() <= 1
    assert np.abs(read_photo(tmp_path / f"grey{suffix}").rgb.astype(int) - photo[..., :1]).max() <= 1


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA"])
def test_grey_and_palette_become_rgb(photo: NDArray[np.uint8], tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(photo).convert(mode)
    image.save(tmp_path / "a.png")
    result = read_photo(tmp_path / "a.png")
    assert np.array_equal(result.rgb, np.asarray(image.convert("RGB"))) and result.alpha is None


def test_palette_transparency_is_alpha(photo: NDArray[np.uint8], tmp_path: Path) -> None:
    indexed = np.asarray(Image.fromarray(photo).quantize(8)).copy()
    indexed[:, :40] = 0
    indexed[:, 40:][indexed[:, 40:] == 0] = 1
    image = Image.fromarray(indexed, "P")
    image.putpalette([value for grey in range(8) for value in (grey * 30, 10, 200)])
    image.save(tmp_path / "a.png", transparency=0)
    alpha = read_photo(tmp_path / "a.png").alpha
    assert alpha is not None and (alpha[:, :40] == 0).all() and (alpha[:, 40:] == 255).all()


def test_useful_alpha_is_kept_with_straight_colours_and_others_are_dropped(photo: NDArray[np.uint8], tmp_path: Path) -> None:
    for name, alpha in {
        "cut": np.tile(np.linspace(0, 255, 160), (96, 1)),
        "solid": np.full((96, 160), 255),
        "clear": np.zeros((96, 160)),
    }.items():
        Image.fromarray(np.dstack([photo, alpha.astype(np.uint8)])).save(tmp_path / f"{name}.png")
    cut = read_photo(tmp_path / "cut.png")
    assert cut.alpha is not None and cut.alpha[0, 0] == 0 and np.array_equal(cut.rgb, photo)
    assert read_photo(tmp_path / "solid.png").alpha is None
    clear = read_photo(tmp_path / "clear.png")
    assert clear.alpha is None and "transparent" in clear.warnings[0]


def test_broken_colour_profile_is_named(photo: NDArray[np.uint8], tmp_path: Path) -> None:
    Image.fromarray(photo).save(tmp_path / "a.png", icc_profile=b"not a profile")
    result = read_photo(tmp_path / "a.png")
    assert np.array_equal(result.rgb, photo) and "profile" in result.warnings[0]


def test_first_frame_of_an_animation(photo: NDArray[np.uint8], tmp_path: Path) -> None:
    frames = [Image.fromarray(photo), Image.fromarray(255 - photo)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    result = read_photo(tmp_path / "a.webp")
    assert np.array_equal(result.rgb, photo) and "animated" in result.warnings[0]


def test_large_photo_is_reduced(photo: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_image, "MAX_SIDE", 80)
    Image.fromarray(photo).save(tmp_path / "a.png")
    result = read_photo(tmp_path / "a.png")
    assert result.rgb.shape == (48, 80, 3) and "160 x 96" in result.warnings[0]
    assert np.abs(result.rgb.astype(float) - cv2.resize(photo, (80, 48), interpolation=cv2.INTER_AREA)).mean() < 4


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and holds almost no data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_001, 40_000])
def test_pixel_bomb_is_refused_before_decoding(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(side, side))
    assert code_of(tmp_path / "bomb.png") == "image-too-large"


def test_every_bad_file_has_its_own_error(photo: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(photo).save(tmp_path / "whole.jpg", quality=95)
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("this is not a photo")
    (tmp_path / "page.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n")
    (tmp_path / "photo.nef").write_bytes(data)
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 64)
    Image.fromarray(photo[:20]).save(tmp_path / "small.png")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert code_of(tmp_path) == "image-is-directory"
    assert code_of(tmp_path / "nothing.jpg") == "image-missing"
    assert code_of(tmp_path / "empty.jpg") == "image-empty"
    assert code_of(tmp_path / "text.jpg") == "image-not-recognised"
    assert code_of(tmp_path / "page.eps") == "image-not-recognised"
    assert code_of(tmp_path / "photo.nef") == "image-raw"
    assert code_of(tmp_path / "photo.heic") == "image-heic-unsupported"
    assert code_of(tmp_path / "cut.jpg") == "image-truncated"
    assert code_of(tmp_path / "small.png") == "image-too-small"


def test_heic_is_read_where_its_library_is_there(photo: NDArray[np.uint8], tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    Image.fromarray(photo).save(tmp_path / "a.heic", quality=95)
    assert np.abs(read_photo(tmp_path / "a.heic").rgb.astype(int) - photo).mean() < 6
