"""Portrait Diffusion inside Blender: a panel, a client of the backend, and the import of the finished heads.

Nothing is imported before `register`: Blender imports this module of every installed extension while it starts.
`core` holds all that needs no Blender; the modules beside it are the thin layer over bpy. The backend's torch is never
imported here: it lives in a process and a virtual environment of its own.
"""


def register():
    """Register classes, properties, handlers and the timer."""
    from . import registration

    registration.register(__package__)


def unregister():
    """Undo `register`; running jobs go on in the backend."""
    from . import registration

    registration.unregister()
