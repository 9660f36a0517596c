"""Notice that another process is gone, whatever way it went."""

from __future__ import annotations

import os
import select
import sys


class ParentWatch:
    """Watches a process by its id; a process that is gone already counts as gone."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._handle: int | None = None
        self._gone = False
        if hasattr(os, "pidfd_open"):
            try:
                self._handle = os.pidfd_open(pid)
            except ProcessLookupError:
                self._gone = True
            except OSError:  # a kernel or a container without it
                self._handle = None
        elif sys.platform == "win32":
            import ctypes

            synchronise = 0x00100000
            self._handle = ctypes.windll.kernel32.OpenProcess(synchronise, False, pid) or None
            self._gone = self._handle is None

    def alive(self) -> bool:
        """Tell whether the process is still there."""
        if self._gone:
            return False
        if sys.platform == "win32":
            import ctypes

            timed_out = 0x102
            return bool(ctypes.windll.kernel32.WaitForSingleObject(self._handle, 0) == timed_out)
        if self._handle is not None:
            return not select.select([self._handle], [], [], 0)[0]
        try:
            os.kill(self._pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True
