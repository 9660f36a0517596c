"""The extension's preferences: which backend, how it is installed, and the developer's setting."""

import os
from pathlib import Path

import bpy
from bpy.props import BoolProperty, EnumProperty, StringProperty

from .core.manager import Plan
from .core.process import Launch

PYTHON_VARIABLE = "PORTRAIT_DIFFUSION_PYTHON"
"""Environment variable: a Python that can run portrait_backend, used in place of an installation (for developers and tests)."""
LOOPBACK = ("127.", "localhost", "[::1]")


def _changed(self: object, context: object) -> None:
    from . import runtime

    runtime.session().apply_preferences()


class PortraitPreferences(bpy.types.AddonPreferences):
    """Drawn by Blender below the extension's name."""

    bl_idname = __package__

    where: EnumProperty(
        name="Backend",
        items=[
            ("LOCAL", "This computer", "Install and run the backend here"),
            ("REMOTE", "Another one", "Connect to a backend that runs elsewhere: portrait-diffusion serve"),
        ],
        update=_changed,
    )
    torch: EnumProperty(
        name="Compute on",
        description="Which PyTorch is installed with the backend",
        items=[
            ("AUTO", "Automatic", "The GPU build where an NVIDIA driver is found, else the CPU build"),
            ("CPU", "CPU", "Small download, works everywhere"),
            ("GPU", "NVIDIA GPU", "Some gigabytes, needs an NVIDIA GPU and its driver"),
        ],
    )
    wheel_folder: StringProperty(
        name="Offline wheels",
        description="Install from this folder of wheels and never ask the network. Empty: from the package index",
        subtype="DIR_PATH",
    )
    auto_import: BoolProperty(name="Import finished heads", description="Bring a head into the scene as soon as it is done", default=True)
    remote_file: StringProperty(
        name="Connection file",
        description="The file that `portrait-diffusion serve` or `keys` wrote: address and keys in one",
        subtype="FILE_PATH",
        update=_changed,
    )
    remote_endpoint: StringProperty(name="Address", description="For example tcp://192.168.1.20:5870", update=_changed)
    remote_server_key: StringProperty(name="Backend's key", description="The backend's public key, 40 characters", update=_changed)
    remote_public_key: StringProperty(name="Own public key", description="Your public key, 40 characters", update=_changed)
    remote_secret_key: StringProperty(
        name="Own secret key",
        description="Your secret key, 40 characters; kept in Blender's preferences",
        subtype="PASSWORD",
        update=_changed,
    )
    developer_python: StringProperty(
        name="Developer: Python",
        description=f"Run the backend with this Python instead of installing it; the variable {PYTHON_VARIABLE} does the same",
        subtype="FILE_PATH",
        update=_changed,
    )

    def draw(self, context: bpy.types.Context) -> None:
        """Draw the preferences."""
        from . import backend_box

        layout = self.layout
        layout.use_property_split = True
        layout.use_property_decorate = False
        layout.prop(self, "where", expand=True)
        if self.where == "LOCAL":
            layout.prop(self, "torch")
            layout.prop(self, "wheel_folder")
        else:
            layout.prop(self, "remote_file")
            column = layout.column()
            column.enabled = not self.remote_file
            for name in ("remote_endpoint", "remote_server_key", "remote_public_key", "remote_secret_key"):
                column.prop(self, name)
        backend_box.draw(layout.box(), lines=12)
        layout.prop(self, "auto_import")
        if context.preferences.view.show_developer_ui:
            layout.prop(self, "developer_python")


CLASSES = (PortraitPreferences,)


def set_package(package: str) -> None:
    """Blender names the extension when it registers it."""
    PortraitPreferences.bl_idname = package


def current() -> PortraitPreferences:
    """Return the preferences of this Blender."""
    return bpy.context.preferences.addons[PortraitPreferences.bl_idname].preferences


def plan() -> Plan:
    """Return which backend the preferences (or the developer's variable) ask for."""
    given = current()
    if given.where == "REMOTE":
        return Plan(remote=_remote(given), is_remote=True)
    python = os.environ.get(PYTHON_VARIABLE) or given.developer_python
    if python:
        return Plan(developer=Launch(Path(bpy.path.abspath(python)), developer=True))
    return Plan()


def _remote(given: PortraitPreferences):
    from portrait_shared.connection import Connection

    if given.remote_file:
        return Path(bpy.path.abspath(given.remote_file))
    keys = (given.remote_server_key, given.remote_public_key, given.remote_secret_key)
    try:
        return Connection(given.remote_endpoint.strip(), *(key.strip() for key in keys))
    except ValueError:
        return None  # not (yet) complete: the panel says so


def needs_network() -> bool:
    """Return whether the backend of the preferences is on another machine, or has to be downloaded."""
    from portrait_shared.connection import Connection, read_connection
    from portrait_shared.errors import PortraitDiffusionError

    chosen = plan()
    if not chosen.is_remote:
        return False
    target = chosen.remote
    if isinstance(target, Path):
        try:
            target = read_connection(target)
        except PortraitDiffusionError:
            return False
    return isinstance(target, Connection) and not target.endpoint.removeprefix("tcp://").startswith(LOOPBACK)
