"""Small line plots as SVG: one figure by view, one line per method."""

from __future__ import annotations

from html import escape

from portrait_backend.evaluation.scores import METRICS, Mean

COLOURS = ("#2f6fde", "#d9622b", "#2a9d6f", "#a04fc4", "#b58900", "#d33682")
DASHES = ("none", "6 3", "2 2")
"""The dashes of the second and third six lines."""
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM, LEGEND = 380, 214, 52, 12, 34, 32, 16


def line_plot(metric: str, lines: dict[str, dict[str, Mean]]) -> str:
    """Return an SVG of {method: {view: mean}}; "" where no method has two views with a figure."""
    known = {method: {view: m.value for view, m in views.items() if m.value is not None} for method, views in lines.items()}
    known = {method: points for method, points in known.items() if len(points) > 1}
    if not known:
        return ""
    views = list(dict.fromkeys(view for points in lines.values() for view in points))
    values = [value for points in known.values() for value in points.values()]
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - margin, high + margin

    def x(view: str) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (views.index(view) + 0.5) / len(views)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    facts = METRICS[metric]
    unit = f" [{facts.unit}]" if facts.unit else ""
    better = f", {facts.better} is better" if facts.better else ""
    parts = [f'<text x="{LEFT}" y="16" font-weight="600">{escape(facts.label + unit + better)}</text>']
    for share in (0.0, 0.5, 1.0):
        value = low + share * (high - low)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="currentColor" opacity=".15"/>'
        )
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.{facts.digits}f}</text>')
    parts += [f'<text x="{x(view):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{escape(view)}</text>' for view in views]
    for number, (method, points) in enumerate(known.items()):
        colour = COLOURS[number % len(COLOURS)]
        line = f'fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{DASHES[number // len(COLOURS) % len(DASHES)]}"'
        path = " ".join(f"{x(view):.1f},{y(points[view]):.1f}" for view in views if view in points)
        parts.append(f'<polyline points="{path}" {line}/>')
        parts += [f'<circle cx="{x(v):.1f}" cy="{y(points[v]):.1f}" r="3" fill="{colour}"/>' for v in views if v in points]
        place = HEIGHT + LEGEND * number
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + 26}" y1="{place}" y2="{place}" {line}/>')
        parts.append(f'<text x="{LEFT + 34}" y="{place + 4}">{escape(method)}</text>')
    title, height = escape(f"{facts.label} by view"), HEIGHT + LEGEND * len(known)
    return (
        f'<svg width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}" '
        f'font-family="system-ui, sans-serif" font-size="11" fill="currentColor">{"".join(parts)}</svg>'
    )
