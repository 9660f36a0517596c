"""The compute backend: one portrait photo in, a textured 3D head out.

`portrait_backend.generate(photo, settings, on_progress=..., output=...)` is the whole main job; importing this
package alone loads neither torch nor anything else heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from portrait_backend.pipeline import Result, generate

__version__ = "0.1.0"
__all__ = ["Result", "__version__", "generate"]


def __getattr__(name: str) -> Any:
    if name in ("Result", "generate"):
        from portrait_backend import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
