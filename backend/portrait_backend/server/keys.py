"""CURVE keys on disk: the server's own, the local client's, and those of the clients that may come from elsewhere.

``keys/server.json`` and ``keys/local.json`` hold key pairs (mode 0600). ``keys/authorised/NAME.pub`` holds one public
key each; the folder is read again for every request, so a revoked client is out at once.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from portrait_shared.connection import KEY, read_private, write_private
from portrait_shared.errors import PortraitDiffusionError

CLIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


LOCAL = "local"
"""Stands for the key in the connection file where clients are named."""


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key pair in Z85."""

    public: str
    secret: str = field(repr=False)

    @classmethod
    def new(cls) -> KeyPair:
        """Make a new pair."""
        public, secret = zmq.curve_keypair()
        return cls(public.decode("ascii"), secret.decode("ascii"))


@dataclass(frozen=True)
class AuthorisedClient:
    """A client from elsewhere: its name and public key."""

    name: str
    public: str


class KeyFolder:
    """The keys of one server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authorised_folder = folder / "authorised"
        self.authorised_folder.mkdir(parents=True, exist_ok=True)
        self._seen: tuple[tuple[str | int, ...], ...] | None = None
        self._names: dict[str, str] = {}

    def server(self) -> KeyPair:
        """Return the server's key pair; made at first use."""
        return self._own("server")

    def local(self) -> KeyPair:
        """Return the key pair of the connection file; made at first use."""
        return self._own("local")

    def _own(self, name: str) -> KeyPair:
        path = self.folder / f"{name}.json"
        try:
            data = json.loads(read_private(path))
            pair = KeyPair(data["public"], data["secret"])
            if KEY.fullmatch(pair.public) and KEY.fullmatch(pair.secret):
                return pair
            raise ValueError("it holds no CURVE keys")
        except FileNotFoundError:
            pair = KeyPair.new()
            _write(path, json.dumps({"public": pair.public, "secret": pair.secret}) + "\n")
            return pair
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PortraitDiffusionError("keys-unreadable", f"{path} can't be read ({error})", "Move it away to make new keys") from error

    def create(self, name: str) -> KeyPair:
        """Make a key pair for a client and authorise it; the secret is returned and kept nowhere."""
        pair = KeyPair.new()
        self.authorise(name, pair.public)
        return pair

    def authorise(self, name: str, public: str) -> None:
        """Authorise a client by its public key; may raise errors key-name-invalid, key-exists, key-invalid, key-not-written."""
        if not CLIENT_NAME.fullmatch(name):
            raise PortraitDiffusionError("key-name-invalid", f"{name!r} is no name for a key", "Use letters, digits, '-', '_' and '.'")
        if not KEY.fullmatch(public):
            raise PortraitDiffusionError(
                "key-invalid", "this is no public CURVE key", "Give the 40 characters that the client's file names"
            )
        path = self.authorised_folder / f"{name}.pub"
        if path.exists():
            raise PortraitDiffusionError("key-exists", f"there is a key named {name} already", "Revoke it first, or take another name")
        _write(path, public + "\n")

    def revoke(self, name: str) -> None:
        """Shut a client out, connected or not; raises PortraitDiffusionError ``key-not-found``."""
        path = self.authorised_folder / f"{name}.pub"
        if not CLIENT_NAME.fullmatch(name) or not path.is_file():
            raise PortraitDiffusionError("key-not-found", f"there is no key named {name!r}", "See portrait-diffusion keys list")
        path.unlink()

    def authorised(self) -> list[AuthorisedClient]:
        """Return the authorised clients by name."""
        return [AuthorisedClient(name, public) for public, name in sorted(self._read().items(), key=lambda item: item[1])]

    def may_enter(self, public: str) -> bool:
        """Tell whether a public key is authorised now."""
        return public in self._read()

    def name_of(self, public: str) -> str:
        """Return the name of a client by its public key, "" for one that is not (any more) authorised."""
        return LOCAL if public == self.local().public else self._read().get(public, "")

    def key_of(self, name: str) -> str:
        """Return the public key of a client by its name; a public key is returned as it is.

        Raises PortraitDiffusionError ``key-not-found``.
        """
        if KEY.fullmatch(name):
            return name
        found = {LOCAL: self.local().public, **{client.name: client.public for client in self.authorised()}}
        if name not in found:
            hint = "See portrait-diffusion keys list; a revoked client has its public key only (jobs list)"
            raise PortraitDiffusionError("key-not-found", f"there is no key named {name!r}", hint)
        return found[name]

    def _read(self) -> dict[str, str]:
        """Return {public key: name}; the files are read again only when the folder has changed."""
        with os.scandir(self.authorised_folder) as entries:
            seen = tuple(sorted(_signature(entry) for entry in entries if entry.name.endswith(".pub")))
        if seen != self._seen:
            keys: dict[str, str] = {}
            for name in (str(name) for name, *_ in seen):
                with suppress(FileNotFoundError):  # revoked just now
                    key = (self.authorised_folder / name).read_text(encoding="ascii", errors="replace").strip()
                    if KEY.fullmatch(key):
                        keys[key] = name.removesuffix(".pub")
            self._names, self._seen = keys, seen
        return self._names


def _write(path: Path, text: str) -> None:
    try:
        write_private(path, text)
    except OSError as error:
        hint = "Free some space, or see who may write there"
        raise PortraitDiffusionError("key-not-written", f"{path} can't be written ({error.strerror})", hint, retryable=True) from error


def _signature(entry: os.DirEntry[str]) -> tuple[str | int, ...]:
    """Return what changes when a key file is replaced or edited."""
    try:
        state = entry.stat()
    except FileNotFoundError:  # revoked just now
        return entry.name, 0, 0, 0
    return entry.name, state.st_ino, state.st_mtime_ns, state.st_size
