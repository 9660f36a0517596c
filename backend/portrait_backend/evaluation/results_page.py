"""docs/RESULTS.md: the figures between its markers are written by `evaluate --results`, everything else by hand.

A block starts with `<!-- figures: NAME -->` and ends with `<!-- end -->`; NAME is a section of the report (photos, ground_truth,
ablations). A block whose section was not evaluated stays as it is.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from portrait_backend.evaluation.report import Report
from portrait_backend.evaluation.scores import METRICS, Score, by_view, mean, show, table
from portrait_backend.files import atomic_path
from portrait_shared.errors import PortraitDiffusionError

BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
PER_SUBJECT = ("landmark_error", "matte_iou", "reference_psnr", "reference_ssim", "sharpness", "consistency", "identity")
"""Figures of the table by photo."""
PER_ANGLE = ("foreground_psnr", "ssim", "iou", "depth_error", "normal_error")
"""Figures of the tables by view angle."""


def check_page(path: Path) -> None:
    """Raise PortraitDiffusionError ``results-unreadable`` if the page has no block to renew."""
    try:
        found = BLOCK.search(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        found = None
    if found is None:
        raise PortraitDiffusionError(
            "results-unreadable", f"{path} has no block between '<!-- figures: NAME -->' and '<!-- end -->'", "Name a page that has one"
        )


def renew(path: Path, report: Report) -> None:
    """Write the report's figures into the blocks of the page at `path`; what stands outside them stays."""
    text = path.read_text(encoding="utf-8")

    def block(match: re.Match[str]) -> str:
        body = markdown(report, match[2])
        return match[0] if body is None else f"{match[1]}{body}\n{match[3]}"

    with atomic_path(path) as part:
        part.write_text(BLOCK.sub(block, text), encoding="utf-8")


def markdown(report: Report, section: str) -> str | None:
    """Return the tables of a section, None if the report has no such section."""
    scores = report.of(section)
    if not scores:
        return None
    if section == "ground_truth":
        parts = [_angles(scores, name) for name in PER_ANGLE]
        parts.append(
            "Chamfer distance: " + "; ".join(f"{m} {show('chamfer', row['chamfer'])} mm" for m, row in table(scores).items()) + "."
        )
    else:
        parts = [_means(scores)]
        if section == "photos":
            parts.append(_by_subject(scores, report.record["subjects"]))
        if section == "ablations":
            parts += [f"Not in this version: {r['figure']}: {r['name']} ({r['reason']})." for r in report.record["unavailable_ablations"]]
    parts.append(_circumstances(report, scores))
    return "\n\n".join(parts)


def _means(scores: list[Score]) -> str:
    rows = table(scores)
    names = [name for name in METRICS if any(name in row for row in rows.values())]
    return _table(["mean", *(_label(n) for n in names)], [[method, *(show(n, row.get(n)) for n in names)] for method, row in rows.items()])


def _by_subject(scores: list[Score], about: dict[str, dict[str, Any]]) -> str:
    rows = []
    names = [name for name in PER_SUBJECT if any(s.metric == name for s in scores)]
    for subject, method in dict.fromkeys((s.subject, s.method) for s in scores):
        mine = [s for s in scores if (s.subject, s.method) == (subject, method)]
        costs = [str(round(value)) if (value := about.get(subject, {}).get(key)) else "–" for key in ("seconds", "peak_memory_mb")]
        rows.append([subject, method, *(show(n, mean(s for s in mine if s.metric == n)) for n in names), *costs])
    return _table(["photo", "of", *(_label(n) for n in names), "seconds to make", "peak memory [MB]"], rows)


def _angles(scores: list[Score], metric: str) -> str:
    lines = by_view(scores, metric)
    views = list(dict.fromkeys(view for row in lines.values() for view in row))
    return _table([_label(metric), *views], [[method, *(show(metric, row.get(view)) for view in views)] for method, row in lines.items()])


def _label(name: str) -> str:
    metric = METRICS[name]
    return metric.label + (f" [{metric.unit}]" if metric.unit else "")


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _circumstances(report: Report, scores: list[Score]) -> str:
    subjects = len({score.subject for score in scores})
    what = "identities" if any(score.metric == "chamfer" for score in scores) else "photos"
    absent = [f"{m['name']}: {m['reason']}" for m in report.record["models"] if not m["available"]]
    missing = f" Not measured: {'; '.join(absent)}." if absent else ""
    record = report.record
    weights = ", ".join(f"{name} {sha256[:8]}" for name, sha256 in record["weights"].items())
    circumstances = f"preset {', '.join(_presets(report, scores))}, {record['generator']}, {record['device']}, weights {weights}"
    return f"{subjects} {what}, {circumstances}.{missing}"


def _presets(report: Report, scores: list[Score]) -> list[str]:
    """Return the presets of the heads that were measured: finished jobs have their own, all others the evaluation's."""
    jobs = [report.record["subjects"].get(score.subject) or report.record for score in scores]
    return sorted({(job.get("settings") or report.record["settings"])["preset"] for job in jobs})
