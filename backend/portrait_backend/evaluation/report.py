"""The report: one HTML page that holds everything it shows (no network, works from disk), a JSON file and a CSV of all scores."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portrait_backend.evaluation.mesh_file import MeshHead
from portrait_backend.evaluation.plots import line_plot
from portrait_backend.evaluation.scores import METRICS, Mean, Score, by_view, shown, table
from portrait_backend.evaluation.viewer_mesh import image_url, viewer_mesh

PAGE, DATA, SCORES = "report.html", "report.json", "scores.csv"
PICTURE_SIZE = 512
TITLES = {
    "photos": "Heads against their photos",
    "ground_truth": "Heads against the truth",
    "ablations": "Ablations",
}
PAPER = {
    "Portrait3D": (0.9956, 0.4258, 0.1899),
    "Wonder3D": (0.9943, 0.4377, 0.3057),
    "DreamCraft3D": (0.9969, 0.4064, 0.2314),
    "Portrait Diffusion (the paper's)": (0.9986, 0.3616, 0.3440),
}
"""Table 1 of arXiv 2411.10369: CLIP-I, LPIPS, ID."""


@dataclass
class Report:
    """An evaluation: its scores and record (JSON data), and what is only shown.

    pictures: {(section, subject, method): {view: (H, W, 3) u8}}; photos: {subject: (H, W, 3) u8}; meshes: {(subject, method): mesh}.
    """

    record: dict[str, Any]
    scores: list[Score] = field(default_factory=list)
    pictures: dict[tuple[str, str, str], dict[str, NDArray[np.uint8]]] = field(default_factory=dict)
    photos: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    meshes: dict[tuple[str, str], MeshHead] = field(default_factory=dict)

    def of(self, section: str) -> list[Score]:
        """Return the scores of a section."""
        return [score for score in self.scores if score.section == section]


def write_report(report: Report, folder: Path) -> None:
    """Write the page, the JSON and the CSV into `folder`."""
    (folder / DATA).write_text(json.dumps(as_json(report), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with (folder / SCORES).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["section", "subject", "method", "view", "metric", "value"])
        for s in report.scores:
            writer.writerow([s.section, s.subject, s.method, s.view, s.metric, "" if s.value is None else f"{s.value:.6g}"])
    (folder / PAGE).write_text(page(report), encoding="utf-8")


def as_json(report: Report) -> dict[str, Any]:
    """Return record, means and scores as JSON data."""
    means = {
        section: {method: {name: m.record() for name, m in row.items()} for method, row in table(report.of(section)).items()}
        for section in TITLES
        if report.of(section)
    }
    keys = ("section", "subject", "method", "view", "metric", "value")
    scores = [{key: getattr(score, key) for key in keys} for score in report.scores]
    metrics = {name: {"label": m.label, "unit": m.unit, "better": m.better, "what": m.what} for name, m in METRICS.items()}
    return {**report.record, "metrics": metrics, "means": means, "scores": scores}


def page(report: Report) -> str:
    """Return the HTML page."""
    css, viewer, script = (_asset(name) for name in ("page.css", "viewer.js", "page.js"))
    body = "\n".join(_body(report))
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Portrait Diffusion: evaluation</title>
<style>
{css}</style></head>
<body>
{body}
<dialog><div><span><img alt=""></span><span><img alt=""></span></div><p></p></dialog>
<script>
{viewer}
{script}</script>
</body>
</html>
"""


def _asset(name: str) -> str:
    return (files("portrait_backend.evaluation") / "page" / name).read_text(encoding="utf-8")


def _body(report: Report) -> Iterator[str]:
    record = report.record
    yield f"<h1>Evaluation</h1><p class='note'>{escape(record['generator'])}, {escape(record['started'])}, {escape(record['device'])}</p>"
    for problem in record["problems"]:
        yield f"<p><strong>Left out:</strong> {escape(problem)}</p>"
    for section, title in TITLES.items():
        scores = report.of(section)
        if not scores:
            continue
        yield f"<h2>{title}</h2>"
        yield summary_table(scores)
        if section == "photos":
            yield _paper_table()
        if section == "ablations":
            yield _unavailable_rows(record["unavailable_ablations"])
        yield f"<div class='plots'>{''.join(_plots(scores))}</div>"
        yield from _subjects(report, section)
    yield _models(record["models"])
    yield _meaning(report.scores)
    facts = {key: record[key] for key in ("settings", "weights", "versions", "subjects")}
    yield f"<h2>Settings and hashes</h2><pre>{escape(json.dumps(facts, indent=1, ensure_ascii=False))}</pre>"


def summary_table(scores: list[Score]) -> str:
    """Return the table of means, one row per method; the best of each column stands out where there are several."""
    rows = table(scores)
    names = [name for name in METRICS if any(name in row for row in rows.values())]
    best = {name: _best(name, [row[name] for row in rows.values() if name in row]) for name in names}
    head = "".join(f"<th title='{escape(METRICS[n].what)}'>{escape(_heading(n))}</th>" for n in names)
    lines = [f"<tr><th>method</th>{head}</tr>"]
    subjects = {score.subject for score in scores}
    for method, row in rows.items():
        cells = "".join(_cell(name, row.get(name), best[name]) for name in names)
        some = len({score.subject for score in scores if score.method == method})
        note = f"<br><small>only {some} of {len(subjects)}</small>" if some < len(subjects) else ""
        lines.append(f"<tr><td>{escape(method)}{note}</td>{cells}</tr>")
    return f"<div class='scroll'><table>{''.join(lines)}</table></div>"


def _heading(name: str) -> str:
    metric = METRICS[name]
    arrow = {"more": " ↑", "less": " ↓", "": ""}[metric.better]
    return metric.label + (f" [{metric.unit}]" if metric.unit else "") + arrow


def _best(name: str, means: list[Mean]) -> float | None:
    """Return the best mean, None where none stands out or they leave out different views."""
    values = [m.value for m in means if m.value is not None]
    if len(values) < 2 or len({(m.count, m.missing) for m in means}) > 1 or not METRICS[name].better or max(values) == min(values):
        return None
    return max(values) if METRICS[name].better == "more" else min(values)


def _cell(name: str, average: Mean | None, best: float | None) -> str:
    mark = " class='best'" if average is not None and best is not None and average.value == best else ""
    value, missing = shown(name, average)
    return f"<td{mark}>{value}{f'<br><small>{missing}</small>' if missing else ''}</td>"


def _paper_table() -> str:
    rows = "".join(f"<tr><td>{escape(name)}</td>{''.join(f'<td>{x:.4f}</td>' for x in row)}</tr>" for name, row in PAPER.items())
    return (
        "<p class='note'>For orientation, Table 1 of arXiv 2411.10369 on its own photos with its own feature networks; "
        "figures of other networks can't be held against it:</p>"
        f"<div class='scroll'><table><tr><th>method</th><th>CLIP-I ↑</th><th>LPIPS ↓</th><th>ID ↑</th></tr>{rows}</table></div>"
    )


def _unavailable_rows(rows: list[dict[str, str]]) -> str:
    if not rows:
        return ""
    lines = "".join(
        f"<tr><td>{escape(r['figure'])}: {escape(r['name'])}</td><td class='text'>{escape(r['reason'])}</td></tr>" for r in rows
    )
    return f"<p class='note'>Rows that this version can't run:</p><div class='scroll'><table>{lines}</table></div>"


def _plots(scores: list[Score]) -> Iterator[str]:
    for name in METRICS:
        lines = by_view(scores, name)
        if any(len(views) > 1 for views in lines.values()):
            yield line_plot(name, lines)


def _subjects(report: Report, section: str) -> Iterator[str]:
    """Yield, for each photo or identity, its pictures, its 3D views and its figures."""
    subjects = list(dict.fromkeys(subject for part, subject, _ in report.pictures if part == section))
    if any(subject in subjects for subject, _ in report.meshes) and section == "photos":
        yield (
            "<div class='switches'><label><input type='checkbox' id='clay'> surface without texture</label>"
            "<label><input type='checkbox' id='linked' checked> turn all heads together</label>"
            "<small>drag: turn, wheel: zoom, double click: back, arrow keys turn too</small></div>"
        )
    for subject in subjects:
        yield f"<section><h3>{escape(subject)}</h3>"
        for part, name, method in report.pictures:
            if part == section and name == subject:
                yield _views(report, section, subject, method)
        if section == "photos":
            yield _heads(report, subject)
        yield "<details><summary>Figures</summary>" + summary_table([s for s in report.of(section) if s.subject == subject]) + "</details>"
        yield "</section>"


def _views(report: Report, section: str, subject: str, method: str) -> str:
    figures = []
    if subject in report.photos:
        image = f"<img class='photo' alt='photo' src='{image_url(report.photos[subject], PICTURE_SIZE)}'>"
        figures.append(f"<figure>{image}<figcaption>photo</figcaption></figure>")
    for view, picture in report.pictures[section, subject, method].items():
        caption, wide = escape(view.replace("_", " ")), picture.shape[1] > 2 * picture.shape[0]  # a strip of all angles
        image = image_url(picture, picture.shape[1] if wide else PICTURE_SIZE)
        image = f"<img alt='{escape(method)}, {caption}' src='{image}' loading='lazy'>"
        figures.append(f"<figure{' class=wide' if wide else ''}>{image}<figcaption>{caption}</figcaption></figure>")
    return f"<p class='note'>{escape(method)}</p><div class='views'>{''.join(figures)}</div>"


def _heads(report: Report, subject: str) -> str:
    """Return the 3D viewers of a subject and the data they draw."""
    parts = []
    for number, ((name, method), mesh) in enumerate(report.meshes.items()):
        if name != subject:
            continue
        data = json.dumps(viewer_mesh(mesh), separators=(",", ":"))
        label = escape(f"{subject}, {method}, in 3D")
        parts.append(
            f"<figure><canvas data-mesh='mesh-{number}' tabindex='0' role='img' aria-label='{label}'></canvas>"
            f"<figcaption>{escape(method)}</figcaption><script type='application/json' id='mesh-{number}'>{data}</script></figure>"
        )
    return f"<div class='heads'>{''.join(parts)}</div>"


def _models(models: list[dict[str, Any]]) -> str:
    lines = "".join(
        f"<tr><td>{escape(m['name'])}</td><td class='text'>{escape(m['weights'])}</td><td class='text'>{escape(m['source'])}</td>"
        f"<td class='text'>{escape(m['licence'])}</td><td>{m['bytes'] / 1e6:.0f} MB</td>"
        f"<td class='text'>{'used' if m['available'] else 'not available: ' + escape(m['reason'])}</td></tr>"
        for m in models
    )
    return (
        "<h2>Learned metrics</h2><div class='scroll'><table><tr><th>metric</th><th>weights</th><th>source</th><th>licence</th>"
        f"<th>size</th><th></th></tr>{lines}</table></div>"
    )


def _meaning(scores: list[Score]) -> str:
    used = {score.metric for score in scores}
    lines = "".join(
        f"<tr><td>{escape(_heading(name))}</td><td class='text'>{escape(METRICS[name].what)}</td></tr>" for name in METRICS if name in used
    )
    return f"<h2>What the figures mean</h2><div class='scroll'><table>{lines}</table></div>"
