"""The page for Prometheus, asked for over HTTP from a real server."""

from __future__ import annotations

import re
import socket
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("prometheus_client", reason='needs prometheus-client: pip install ".[metrics]"')

from prometheus_client.parser import text_string_to_metric_families

from portrait_backend import __version__
from portrait_backend.cli import main
from portrait_shared.settings import Settings
from tests.server.fake_engine import photo
from tests.server.harness import Server, wait_for

DRAFT = Settings(preset="draft")


def scrape(server: Server) -> dict[tuple[str, ...], float]:
    """Return {(name, label values...): value} of the page."""
    match = re.search(r"metrics on (http://127\.0\.0\.1:\d+/metrics)", server.log)
    assert match is not None, server.log
    with urllib.request.urlopen(match[1], timeout=20) as answer:
        text = answer.read().decode()
    assert "the secret name" not in text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name.removeprefix("portrait_diffusion_"), *sample.labels.values()): sample.value for sample in samples}


def test_the_page_says_what_the_server_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METRICS", "0")
    with Server(tmp_path / "data").start() as server:
        client = server.client()
        done = client.submit(photo(steps=5, pause=0.1), DRAFT, name="the secret name")
        assert server.wait(client, done.id).state == "completed"
        assert server.wait(client, client.submit(photo(fail="no-face"), DRAFT).id).state == "failed"
        running = client.submit(photo(steps=10_000, pause=0.02), DRAFT)
        for _ in range(2):
            client.submit(photo(), DRAFT)
        wait_for(lambda: (page := scrape(server))["jobs", "running"] == 1 and page["queue_length",] == 2, "the page to be up to date")
        page = scrape(server)
        assert page["queue_length",] == 2 and page["jobs", "completed"] == 1 and page["clients",] == 1
        assert page["jobs_ended_total", "completed"] == 1 and page["jobs_ended_total", "failed"] == 1
        assert page["build_info", "1", __version__] == 1 or page["build_info", __version__, "1"] == 1
        assert page["device_up", "cpu"] == 1 and page["device_memory_bytes", "cpu", "free"] == 500e6
        assert page["stage_seconds_count", "prior"] == 1 and 0.3 < page["stage_seconds_sum", "prior"] < 20
        client.cancel(running.id)


def test_there_is_no_page_unless_asked_for(server: Server) -> None:
    assert "metrics on" not in server.log


def test_a_port_that_is_taken_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--data", str(tmp_path / "data"), "--metrics-port", port]) == 2
    assert f"error[bind-failed]: can't listen on 127.0.0.1:{port} for metrics" in capsys.readouterr().err


def test_without_the_package_the_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("portrait_backend.server.metrics.importlib.util.find_spec", lambda name: None)
    assert main(["serve", "--data", str(tmp_path / "data"), "--metrics-port", "0"]) == 2
    assert 'error[metrics-missing]: --metrics-port needs the package prometheus-client. pip install "portrait' in capsys.readouterr().err
