"""Speak with a backend from any Python: submit a photo, follow the job, fetch the result.

One `Client` is one connection and belongs to one thread. Nothing here needs more than the standard library and pyzmq.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from portrait_shared import protocol as p
from portrait_shared.channel import Channel, lost, unreachable
from portrait_shared.connection import Connection, read_connection
from portrait_shared.download import download
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import Settings, to_dict

Event = p.JobProgress | p.JobStateChanged
Reply = TypeVar("Reply", bound=p.Message)

REQUEST_SECONDS = 20.0
"""A backend answers every request within milliseconds; a photo of 100 MB over a slow network takes its time."""
RESUBMIT_SECONDS = 10.0
"""How long `submit` waits for a backend that went away in the middle of it."""
RECONNECT_SECONDS = 60.0
"""How long `follow` waits for a backend that is being restarted."""
QUERY_SECONDS = 5.0
"""How often `follow` asks for the state itself, in case a pushed message was lost."""


class Client:
    """A connection to a backend. Every method raises PortraitDiffusionError with the backend's code."""

    def __init__(self, target: Path | Connection, channel: Channel, info: p.ServerInfo) -> None:
        self._target, self._channel, self.info = target, channel, info
        self._events: list[Event] = []

    @classmethod
    def connect(cls, target: Path | str | Connection, timeout: float = 5.0) -> Client:
        """Connect by a connection file or a `Connection`, and exchange versions.

        Raises PortraitDiffusionError backend-unreachable, key-refused, protocol-mismatch, connection-missing,
        connection-unreadable, connection-exposed.
        """
        where = Path(target) if isinstance(target, str) else target
        channel, info = _open(where, timeout)
        return cls(where, channel, info)

    def reconnect(self, timeout: float = 5.0) -> None:
        """Connect anew, to where the connection file points now; raises as `connect` does."""
        self._channel.close()
        self._channel, self.info = _open(self._target, timeout)

    def close(self) -> None:
        """Close the connection; jobs go on."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def submit(
        self,
        photo: Path | bytes | None,
        settings: Settings | Mapping[str, Any],
        *,
        name: str = "",
        parent: str | None = None,
        start: str | None = None,
        id: str | None = None,
    ) -> p.JobInfo:
        """Put a job into the queue and return it. It carries an id made here, so that a resend never makes a second job.

        photo: a file or its bytes; None takes the photo of the job `parent`. start: see `retexture`. id: 32 hexadecimal
        digits, to repeat a submission whose answer was lost with another client.
        """
        data = _read(photo) if isinstance(photo, Path) else photo
        if data is not None and len(data) > self.info.max_photo_bytes:
            limit = self.info.max_photo_bytes // 10**6
            raise PortraitDiffusionError("photo-too-large", f"the photo has {len(data) / 1e6:.0f} MB, the limit is {limit} MB", "Reduce it")
        photo_name = photo.name if isinstance(photo, Path) else ""
        values = to_dict(settings) if isinstance(settings, Settings) else dict(settings)
        message = p.JobSubmit(id or p.new_id(), values, data, photo_name, name or Path(photo_name).stem, parent, start)
        try:
            return self._request(message, p.JobReply).job
        except PortraitDiffusionError as error:
            if error.code != "backend-lost":
                raise
            self._reconnect_patiently(time.monotonic() + RESUBMIT_SECONDS)
            return self._request(message, p.JobReply).job

    def retexture(self, id: str, settings: Settings | Mapping[str, Any], *, name: str = "") -> p.JobInfo:
        """Submit a job that keeps the geometry (mesh and UVs) of the finished job `id`; the stages after it and the texture run again."""
        return self.submit(None, settings, name=name, parent=id, start="texture")

    def resume(self, id: str) -> p.JobInfo:
        """Put a failed or cancelled job back into the queue; it goes on after its last finished stage."""
        return self._request(p.JobResume(id), p.JobReply).job

    def job(self, id: str) -> p.JobInfo:
        """Return a job as it is now."""
        return self._request(p.JobGet(id), p.JobReply).job

    def jobs(self) -> list[p.JobInfo]:
        """Return this client's jobs, newest first."""
        found: dict[str, p.JobInfo] = {}
        while True:
            page = self._request(p.JobList(offset=len(found)), p.JobListReply)
            found.update({job.id: job for job in page.jobs})
            if not page.jobs or len(found) >= page.total:
                return list(found.values())

    def cancel(self, id: str) -> p.JobInfo:
        """Cancel a job and return it; it is "cancelling" until the stage notices."""
        return self._request(p.JobCancel(id), p.JobReply).job

    def delete(self, id: str) -> None:
        """Delete a job that has ended, with its files."""
        self._request(p.JobDelete(id), p.Done)

    def status(self) -> p.ServerInfo:
        """Return how the backend is now."""
        self.info = self._request(p.ServerStatus(), p.StatusReply).info
        return self.info

    def models(self) -> tuple[p.WeightInfo, ...]:
        """Return the weights that the backend has."""
        return self._request(p.ModelsList(), p.ModelsReply).weights

    def catalogue(self) -> tuple[p.ModelInfo, ...]:
        """Return the models that can be had, and which of them are there."""
        return self._request(p.ModelsList(), p.ModelsReply).models

    def shutdown(self) -> None:
        """Ask the backend to leave (with the local key only)."""
        self._request(p.ServerShutdown(), p.Done)

    def poll(self, timeout: float = 0.0) -> list[Event]:
        """Return what was pushed; waits for at most `timeout` seconds for the first. Of a job's progress the latest is kept.

        Call it every second or so: it also sends the heartbeat. Raises PortraitDiffusionError ``backend-lost``
        when the backend is gone (then `reconnect`).
        """
        deadline = time.monotonic() + timeout
        while (message := self._channel.receive(0.0 if self._events else max(0.0, deadline - time.monotonic()))) is not None:
            self._note(message)
        events, self._events = self._events, []
        return events

    def follow(self, id: str, timeout: float | None = None) -> Iterator[Event]:
        """Yield the job's state and then its events until it has ended; reconnects by itself.

        Raises PortraitDiffusionError ``timeout`` after `timeout` seconds, ``backend-lost`` when the backend does not come back.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        state, asked = "", -QUERY_SECONDS
        while state not in p.TERMINAL:
            if deadline is not None and time.monotonic() > deadline:
                raise PortraitDiffusionError("timeout", f"the job {id} is still {state} after {timeout:g} s", "Wait longer", retryable=True)
            try:
                events = self._events_of(id, 0.5) if state else []
                if time.monotonic() - asked > QUERY_SECONDS:
                    fresh, asked = self.job(id), time.monotonic()
                    events.append(p.JobStateChanged(fresh))
                    # What was pushed before the answer came is older than it.
                    self._events = [e for e in self._events if isinstance(e, p.JobProgress) or e.job.id != id]
            except PortraitDiffusionError as error:
                if error.code != "backend-lost":
                    raise
                self._reconnect_patiently(deadline)
                asked = -QUERY_SECONDS
                continue
            for event in events:
                if isinstance(event, p.JobProgress):
                    yield event
                elif event.job.state != state:
                    state = event.job.state
                    yield event

    def _events_of(self, id: str, timeout: float) -> list[Event]:
        """Poll for the events of one job; those of others are kept for later."""
        held, self._events = self._events, []
        mine = [event for event in held if _job_of(event) == id]
        other = [event for event in held if _job_of(event) != id]
        try:
            for event in self.poll(0.0 if mine else timeout):
                (mine if _job_of(event) == id else other).append(event)
        finally:
            for event in other:
                self._note(event)
        return mine

    def result(
        self, id: str, folder: Path | str, files: Sequence[str] | None = None, progress: Callable[[int, int], None] | None = None
    ) -> Path:
        """Fetch a finished job's files (all, or those named) into `folder` and return it.

        Every file appears complete and verified or not at all; those that are there already are not fetched again.
        progress(bytes done, bytes in all) is called after every piece.
        """
        info = self.job(id)
        if info.state != "completed":
            raise PortraitDiffusionError("job-not-finished", f"the job {id} is {info.state}", "Wait until it is completed")
        wanted = [file for file in info.files if files is None or file.name in files]
        for name in set(files or ()) - {file.name for file in wanted}:
            raise PortraitDiffusionError("file-not-found", f"the job {id} has no file {name!r}", "See its list of files")
        return download(self, id, wanted, Path(folder), progress)

    def exchange(self, messages: Sequence[p.Message], kind: type[Reply]) -> Iterator[Reply]:
        """Send several requests at once and yield their replies in order."""
        numbered = [replace(message, request=p.new_id()) for message in messages]
        for message in numbered:
            self._channel.send(message)
        for message in numbered:
            yield self._reply(message.request, kind)

    def _request(self, message: p.Message, kind: type[Reply]) -> Reply:
        return next(self.exchange([message], kind))

    def _reply(self, request: str, kind: type[Reply]) -> Reply:
        deadline = time.monotonic() + REQUEST_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            message = self._channel.receive(left)
            if message is None:
                break
            if message.request != request:
                self._note(message)  # pushed, or the late answer to a request that was given up
                continue
            if isinstance(message, p.ErrorReply):
                raise message.error.exception()
            if not isinstance(message, kind):
                raise p.ProtocolError(f"the answer should be {kind.__name__}, it is {type(message).__name__}")
            return message
        raise lost(f"no answer for {REQUEST_SECONDS:.0f} s")

    def _note(self, message: p.Message) -> None:
        if isinstance(message, p.JobProgress):
            for index, earlier in enumerate(self._events):
                if isinstance(earlier, p.JobProgress) and earlier.job == message.job:
                    message = replace(message, preview=message.preview or earlier.preview)
                    del self._events[index]
                    break
            self._events.append(message)
        elif isinstance(message, p.JobStateChanged):
            self._events.append(message)

    def _reconnect_patiently(self, deadline: float | None) -> None:
        end = time.monotonic() + RECONNECT_SECONDS if deadline is None else min(deadline, time.monotonic() + RECONNECT_SECONDS)
        while True:
            try:
                return self.reconnect(timeout=2.0)
            except PortraitDiffusionError as error:
                if not error.retryable or time.monotonic() > end:
                    raise
                time.sleep(0.2)  # the connection file may not be there yet


def _job_of(event: Event) -> str:
    return event.job if isinstance(event, p.JobProgress) else event.job.id


def _read(photo: Path) -> bytes:
    try:
        return photo.read_bytes()
    except OSError as error:
        raise PortraitDiffusionError("image-unreadable", f"{photo} can't be read ({error.strerror})", "Check the path") from error


def _open(target: Path | Connection, timeout: float) -> tuple[Channel, p.ServerInfo]:
    connection = target if isinstance(target, Connection) else read_connection(target)
    channel = Channel(connection)
    try:
        return channel, _hello(channel, timeout)
    except BaseException:
        channel.close()
        raise


def _hello(channel: Channel, timeout: float) -> p.ServerInfo:
    hello = p.Hello("portrait_shared", package_version(), request=p.new_id())
    channel.send(hello)
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0:
        try:
            message = channel.receive(left)
        except PortraitDiffusionError as error:
            if error.code == "backend-lost":
                raise unreachable(channel.connection, error.message) from error
            raise
        if isinstance(message, p.ErrorReply) and message.request == hello.request:
            raise message.error.exception()
        if isinstance(message, p.HelloReply):
            return message.info
    raise unreachable(channel.connection, f"no answer for {timeout:g} s")


def package_version() -> str:
    """Return the installed version of Portrait Diffusion, "" where it is not installed as a package."""
    try:
        return importlib.metadata.version("portrait-diffusion")
    except importlib.metadata.PackageNotFoundError:
        return ""
