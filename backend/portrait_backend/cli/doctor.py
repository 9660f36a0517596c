"""`portrait-diffusion doctor`: what is installed, on which device, and what to do about the rest."""

from __future__ import annotations

from typing import Any

import typer

from portrait_backend.cli.console import USER, Debug, Json, print_json, quieten


def doctor(json: Json = False, debug: Debug = False) -> None:
    """Look at this installation and say whether it is ready. Exit code 2 if it is not."""
    quieten(debug)
    from portrait_backend.doctor import examine

    report = examine()
    if json:
        print_json(report)
    else:
        typer.echo("\n".join(lines(report)))
    if not report["ready"]:
        raise typer.Exit(USER)


def lines(report: dict[str, Any]) -> list[str]:
    """Return the report for people."""
    text = [f"portrait-diffusion {report['version']}, Python {report['python']}, {report['system']}", "", "packages"]
    text += [f"  {'ok ' if not p['error'] else '-- '} {name} {p['version'] or p['error']}" for name, p in report["packages"].items()]
    text += ["optional"]
    text += [f"  {'ok ' if p['present'] else '-- '} {name} ({p['for']})" for name, p in report["optional"].items()]
    text += ["devices"]
    for device in report["devices"]:
        extra = f"{device['cores']} cores" if "cores" in device else f"{device['memory_gb']} GB"
        text.append(f"  {device['device']}: {device['name']}, {extra}")
        if fits := device.get("full_scale"):
            needs = ", ".join(f"{mode} {gb} GB" for mode, gb in fits["needed_gb"].items())
            text.append(f"    full scale: {fits['free_gb']} GB free, --memory {fits['memory']} (estimated needs: {needs})")
    memory = report["memory_gb"]
    text += [f"memory: {memory} GB" if memory is not None else "memory: unknown", "weights"]
    for weight in report["weights"]:
        mark = "ok " if weight["state"] == "ok" else "-- "
        text.append(f"  {mark} {weight['name']} {weight['size'] / 1e6:.1f} MB sha256 {weight['sha256'][:16]} {weight['state']}")
    text += [""] + [f"problem: {p['what']} -> {p['do']}" for p in report["problems"]]
    text += ["ready" if report["ready"] else "not ready"]
    return text
