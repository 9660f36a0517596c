"""Pictures in the panel: the live preview, thumbnails of photos and heads. Main thread only.

A live picture is written into the preview's pixels: `reload` would show a spinner until Blender has read the file again.
"""

from __future__ import annotations

from array import array
from pathlib import Path

import bpy
import bpy.utils.previews

LIVE_IMAGE = "Portrait Preview"
"""The image data-block that shows the head as it grows, for an image editor."""


class Pictures:
    """A preview collection: `live` shows JPEGs as they come, `icon` shows files."""

    def __init__(self) -> None:
        self._collection = bpy.utils.previews.new()
        self._live_of: str | None = None

    def close(self) -> None:
        """Give the previews back."""
        bpy.utils.previews.remove(self._collection)

    def live(self, job: str, jpeg: bytes) -> None:
        """Show a job's newest preview, in the panel and in the image data-block (5 ms for 512 x 512)."""
        image = live_image()
        image.pack(data=jpeg, data_len=len(jpeg))
        image.source = "FILE"
        image.buffers_free()
        width, height = image.size
        if width == 0 or height == 0 or image.channels != 4:
            return  # not a picture: a preview more or less
        pixels = array("f", bytes(4 * 4 * width * height))
        image.pixels.foreach_get(pixels)
        preview = self._collection.get("live") or self._collection.new("live")
        preview.image_size = (width, height)
        preview.image_pixels_float.foreach_set(pixels)
        self._live_of = job

    def live_icon(self, job: str) -> int:
        """Return the icon of the job's live preview, 0 if none has come yet."""
        return self._collection["live"].icon_id if self._live_of == job and "live" in self._collection else 0

    def icon(self, path: Path) -> int:
        """Return the icon of a picture file; Blender reads it in the background. 0 if there is no such file."""
        try:
            stamp = path.stat().st_mtime_ns
        except OSError:
            return 0
        key = f"{path}|{stamp}"
        preview = self._collection.get(key) or self._collection.load(key, str(path), "IMAGE")
        return int(preview.icon_id)


def live_image() -> bpy.types.Image:
    """Return the data-block of the live preview; made anew after the user (or an undo) removed it."""
    image = bpy.data.images.get(LIVE_IMAGE)
    if image is None or image.library is not None:
        image = bpy.data.images.new(LIVE_IMAGE, 8, 8)
    return image
