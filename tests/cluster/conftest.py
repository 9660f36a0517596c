"""The tests of a cluster have the time limit of the server's."""

from tests.server.conftest import _time_limit

__all__ = ["_time_limit"]
