"""The one session of this Blender, and the functions that Blender keeps: its timer and its handler."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

from bpy.app.handlers import persistent

if TYPE_CHECKING:
    from .session import Session

_session: Session | None = None


def set_session(session: Session) -> None:
    """Make `session` the one that panels and operators use."""
    global _session
    _session = session


def session() -> Session:
    """Return the session; raises RuntimeError while the add-on is not registered."""
    if _session is None:
        raise RuntimeError("Portrait Diffusion is not enabled")
    return _session


def close_session() -> None:
    """End the session."""
    global _session
    if _session is not None:
        _session.close()
        _session = None


def poll() -> float | None:
    """Blender's timer: one slice of the session's work; returns the seconds until the next."""
    if _session is None:
        return None
    try:
        return _session.poll()
    except Exception:  # noqa: BLE001 - Blender drops a timer that raises: the panel would never move again
        traceback.print_exc()
        return 1.0


@persistent
def file_closes(*_: object) -> None:
    """Blender loads another file: running jobs go on, and are not imported into it by themselves."""
    if _session is not None:
        _session.file_closes()
