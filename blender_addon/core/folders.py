"""Where the extension keeps what: one user folder that survives updates of the extension."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Folders:
    """The extension's places below `root` (bpy.utils.extension_path_user); nothing is created by naming it."""

    root: Path

    @property
    def backend(self) -> Path:
        """Everything that *Uninstall* removes."""
        return self.root / "backend"

    @property
    def venv(self) -> Path:
        """The backend's own Python environment."""
        return self.backend / "venv"

    @property
    def python(self) -> Path:
        """The Python of that environment."""
        return self.venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def incomplete(self) -> Path:
        """Exists from the first byte of an installation to its last: found at start, the installation did not end."""
        return self.backend / "INCOMPLETE"

    @property
    def record(self) -> Path:
        """What is installed: versions and the wheel's hash; written last."""
        return self.backend / "installed.json"

    @property
    def install_log(self) -> Path:
        """Everything the last installation printed."""
        return self.backend / "install.log"

    @property
    def data(self) -> Path:
        """The backend's job store; it stays when the backend is uninstalled."""
        return self.root / "data"

    @property
    def connection(self) -> Path:
        """The file a local backend writes once it listens."""
        return self.data / "connection.json"

    @property
    def serve_log(self) -> Path:
        """What the backend printed since its last start."""
        return self.root / "serve.log"

    @property
    def models_log(self) -> Path:
        """What the last work on a model (download, check, removal) printed."""
        return self.root / "models.log"

    @property
    def jobs(self) -> Path:
        """Photos and results of this user's jobs, one folder each."""
        return self.root / "jobs"
