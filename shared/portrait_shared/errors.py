"""The one error type that users see: a stable code, what was wrong, and what to do."""

from __future__ import annotations


class PortraitDiffusionError(Exception):
    """A problem the user can act on.

    code: stable kebab-case identifier, e.g. ``no-face``; message: what was wrong, with the value;
    hint: what to do; retryable: True if the same call may succeed later.
    """

    def __init__(self, code: str, message: str, hint: str, retryable: bool = False) -> None:
        super().__init__(message)
        self.code, self.message, self.hint, self.retryable = code, message, hint, retryable

    def __str__(self) -> str:
        return f"error[{self.code}]: {self.message}. {self.hint}"

    def as_dict(self) -> dict[str, object]:
        """Return the JSON form used by ``--json`` and the protocol."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "retryable": self.retryable}
