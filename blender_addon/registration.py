"""What is registered, in which order; `unregister` undoes it backwards."""

import bpy

from . import (
    history_panel,
    models_panel,
    operators_backend,
    operators_history,
    operators_job,
    operators_models,
    operators_settings,
    panel,
    preferences,
    properties,
    runtime,
)
from .session import Session

MODULES = (
    preferences,
    properties,
    operators_backend,
    operators_settings,
    operators_job,
    operators_history,
    operators_models,
    panel,
    history_panel,
    models_panel,
)
"""Each has CLASSES; properties come before the panels that draw them."""
FIRST_POLL = 0.2


def register(package: str) -> None:
    """Register everything and start the timer."""
    preferences.set_package(package)
    for module in MODULES:
        for kind in module.CLASSES:
            bpy.utils.register_class(kind)
    bpy.types.Scene.portrait = bpy.props.PointerProperty(type=properties.PortraitScene)
    session = Session(package)
    runtime.set_session(session)
    session.apply_preferences()
    session.scan_history()
    bpy.app.handlers.load_pre.append(runtime.file_closes)
    bpy.app.timers.register(runtime.poll, first_interval=FIRST_POLL, persistent=True)


def unregister() -> None:
    """Stop the timer, leave the backend (jobs go on) and unregister everything."""
    if bpy.app.timers.is_registered(runtime.poll):
        bpy.app.timers.unregister(runtime.poll)
    if runtime.file_closes in bpy.app.handlers.load_pre:
        bpy.app.handlers.load_pre.remove(runtime.file_closes)
    runtime.close_session()
    del bpy.types.Scene.portrait
    for module in reversed(MODULES):
        for kind in reversed(module.CLASSES):
            bpy.utils.unregister_class(kind)
