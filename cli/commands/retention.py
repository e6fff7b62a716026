"""`moorage retention`: what is old enough to go; a dry run unless told otherwise."""

from typing import Final

import click

from cli import console
from tasks.sweeps import retention as keeping
from worker import boot

_WHAT: Final = {
    "renders": ("renders, with their files", "MOORAGE_RETENTION_RENDERS_DAYS"),
    "bodies": ("raw bodies of webhooks applied or ignored", "MOORAGE_RETENTION_BODIES_DAYS"),
    "failed_bodies": ("raw bodies of dead deliveries", "MOORAGE_RETENTION_BODIES_DAYS"),
    "failed_sources": ("inline bytes of dead outputs", "MOORAGE_RETENTION_BODIES_DAYS"),
    "deliveries": ("ended deliveries", "MOORAGE_RETENTION_ROWS_DAYS"),
    "dead_letters": ("dead letters that were replayed", "MOORAGE_RETENTION_ROWS_DAYS"),
    "notifications": ("notifications that were sent, or given up on and discarded", "MOORAGE_RETENTION_ROWS_DAYS"),
    "jobs": ("failed jobs, and jobs of deleted renders", "MOORAGE_RETENTION_ROWS_DAYS"),
}
_DAY: Final = 86400.0


@click.command()
@click.option("--apply", is_flag=True, help="Let it go.")
@console.json_option
def retention(apply: bool, as_json: bool) -> None:
    """Count what has been kept for as long as the settings say; with --apply it goes."""
    deps = boot.get_deps()
    counts = keeping.delete_expired(deps, "cli") if apply else keeping.count_expired(deps)
    if as_json:
        console.print_json({"applied": apply, "counts": counts})
        return
    kept = keeping.retention_seconds(deps.settings)
    rows = [
        (text, f"{kept[what] / _DAY:g} days" if what in kept else "for ever", counts.get(what), setting)
        for what, (text, setting) in _WHAT.items()
    ]
    title = "Gone" if apply else "Would go (dry run; --apply lets it go)"
    console.print_parts(console.build_table(title, ("what", "kept", "count", "setting"), rows))
