"""`moorage retention`: count or delete what exceeds its retention period. A dry run without --apply."""

from typing import Final

import click

from cli import console
from tasks.sweeps.retention import count_expired, delete_expired, retention_seconds
from worker import boot

_KINDS: Final = {
    "renders": ("renders with their files", "MOORAGE_RETENTION_DAYS=renders="),
    "bodies": ("raw bodies of applied or ignored webhooks", "MOORAGE_RETENTION_DAYS=bodies="),
    "failed_bodies": ("raw bodies of dead deliveries", "MOORAGE_RETENTION_DAYS=bodies="),
    "failed_sources": ("inline bytes of dead outputs", "MOORAGE_RETENTION_DAYS=bodies="),
    "quarantine": ("refused files in quarantine", "MOORAGE_QUARANTINE_SECONDS"),
    "deliveries": ("ended deliveries", "MOORAGE_RETENTION_DAYS=rows="),
    "uploads": ("uploads that no open job names", "MOORAGE_RETENTION_DAYS=renders="),
    "deleted_uploads": ("rows of deleted uploads", "MOORAGE_RETENTION_DAYS=rows="),
    "open_dead_letters": ("open dead letters without bytes", "MOORAGE_RETENTION_DAYS=dead_letters="),
    "dead_letters": ("replayed dead letters", "MOORAGE_RETENTION_DAYS=rows="),
    "notifications": ("sent notifications, and dead ones that were discarded", "MOORAGE_RETENTION_DAYS=rows="),
    "jobs": ("failed jobs, and jobs of deleted renders", "MOORAGE_RETENTION_DAYS=rows="),
}
_DAY: Final = 86400.0


@click.command()
@click.option("--apply", is_flag=True, help="Delete.")
@console.json_option
def retention(apply: bool) -> console.Output:
    """Count what exceeds the retention periods of the settings; delete it with --apply."""
    deps = boot.get_deps()
    counts = delete_expired(deps, "cli") if apply else count_expired(deps)
    limits = retention_seconds(deps.settings)
    rows = [
        (text, f"{limits[kind] / _DAY:g} days" if kind in limits else "forever", counts.get(kind), setting)
        for kind, (text, setting) in _KINDS.items()
    ]
    title = "Deleted" if apply else "Would be deleted (dry run; use --apply)"
    table = console.build_table(title, ("kind", "retained", "count", "setting"), rows)
    return {"applied": apply, "counts": counts}, [table]
