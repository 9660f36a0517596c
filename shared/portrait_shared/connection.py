"""The connection file: where a backend listens and the keys to speak with it.

Whoever can read the file can use the backend, so only its owner may (mode 0600; on Windows the user's folder protects it).
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from portrait_shared.errors import PortraitDiffusionError

FORMAT = 1
KEY = re.compile(r"[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
"""A CURVE key in Z85."""
HINT = "Start the backend with portrait-diffusion serve, or give another --connection-file"


@dataclass(frozen=True)
class Connection:
    """An endpoint (tcp://host:port), the backend's public key and the client's own key pair, in Z85; pid: 0 where it is unknown."""

    endpoint: str
    server_key: str
    client_public_key: str
    client_secret_key: str = field(repr=False)
    pid: int = 0

    def __post_init__(self) -> None:
        for name in ("server_key", "client_public_key", "client_secret_key"):
            if not KEY.fullmatch(getattr(self, name)):
                raise ValueError(f"{name} is no CURVE key (40 characters of Z85)")
        if not re.fullmatch(r"tcp://[^\s/]+:\d{1,5}", self.endpoint):
            raise ValueError(f"the endpoint must be tcp://host:port, got {self.endpoint!r}")


def write_connection(path: Path | str, connection: Connection) -> None:
    """Write the connection file so that only its owner can read it, at no moment half-written."""
    data = {
        "application": "portrait-diffusion",
        "format": FORMAT,
        "endpoint": connection.endpoint,
        "server_key": connection.server_key,
        "client_public_key": connection.client_public_key,
        "client_secret_key": connection.client_secret_key,
        "pid": connection.pid,
    }
    write_private(Path(path), json.dumps(data, indent=2) + "\n")


def read_connection(path: Path | str) -> Connection:
    """Read a connection file; raises PortraitDiffusionError connection-missing, connection-unreadable, connection-exposed."""
    path = Path(path)
    try:
        text = read_private(path)
    except FileNotFoundError as error:
        raise PortraitDiffusionError("connection-missing", f"there is no connection file {path}", HINT, retryable=True) from error
    except (OSError, ValueError) as error:
        raise PortraitDiffusionError("connection-unreadable", f"{path} can't be read ({error})", HINT) from error
    try:
        data = json.loads(text)
        if data["format"] != FORMAT:
            raise ValueError(f"its format is {data['format']!r}, this version reads {FORMAT}")
        pid = data.get("pid", 0)
        return Connection(
            data["endpoint"],
            data["server_key"],
            data["client_public_key"],
            data["client_secret_key"],
            pid if isinstance(pid, int) else 0,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PortraitDiffusionError("connection-unreadable", f"{path} is no connection file ({error})", HINT) from error


def write_private(path: Path, text: str) -> None:
    """Write a file with mode 0600 from its first byte on; a reader sees the old or the new one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_private(path: Path) -> str:
    """Read a file that only its owner may read; raises PortraitDiffusionError ``connection-exposed`` if others may, OSError, ValueError."""
    with path.open(encoding="utf-8") as file:
        mode = os.fstat(file.fileno()).st_mode
        if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise PortraitDiffusionError(
                "connection-exposed",
                f"{path} holds a secret key and others may read it (mode {stat.S_IMODE(mode):04o})",
                f"chmod 600 {path}, and make new keys if somebody may have read it",
            )
        return file.read(65536)
