"""The forms of the drill: which faults it injects, and the settings that differ from moorage's defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from simulation.chaos.faults import KINDS
from simulation.chaos.load import MAX_PIXELS

LEASE_SECONDS: Final = 10.0
SETTINGS: Final = {
    "MOORAGE_LEASE_SECONDS": f"{LEASE_SECONDS:.0f}",  # so that a frozen worker is fenced within the drill's time
    "MOORAGE_DEV_POLL_FIRST_SECONDS": "15",
    "MOORAGE_DEV_WAIT_CAP_SECONDS": "20",
    "MOORAGE_IMAGE_MAX_PIXELS": str(MAX_PIXELS),  # refuses the files that are replayed at the end
}
# More crashes than in a year: the form `all` does not test poison.
HIGH_LIMITS: Final = {"MOORAGE_DEV_MAX_CRASHES": "50", "MOORAGE_MAX_ERRORS": "50"}

ALL: Final = {name: kind.weight for name, kind in KINDS.items() if kind.weight}


@dataclass(frozen=True, slots=True)
class DrillForm:
    """
    Faults and settings of a drill.

    Args:
        kinds: kinds of fault with their relative frequencies.
        settings: in addition to SETTINGS.
        small_disk: what is on a small file system that a fault fills.
        has_standby: PostgreSQL has a standby, and no proxy is in front of the two.
    """

    description: str
    kinds: Mapping[str, int]
    settings: Mapping[str, str] = field(default_factory=dict)
    small_disk: Literal["temporary files", "tables"] | None = None
    has_standby: bool = False

    @property
    def environment(self) -> dict[str, str]:
        """Return the settings of moorage's processes that differ from the defaults."""
        return {**SETTINGS, **self.settings}


# Beside its own fault each form kills pool children now and then: a refusal also meets work that a kill interrupted.
KILLS: Final = {"pool child killed": 1}

FORMS: Final = {
    "all": DrillForm("faults of every kind; high limits of errors and crashes", ALL, HIGH_LIMITS),
    "default-limits": DrillForm("faults of every kind, with the default limits", ALL),
    "broker-full": DrillForm("the broker refuses writes at its memory limit", {"broker full": 4, **KILLS}),
    "broker-read-only": DrillForm("the broker is a replica: read-only", {"broker read-only": 4, **KILLS}),
    "postgres-read-only": DrillForm("PostgreSQL accepts no writes", {"PostgreSQL read-only": 4, **KILLS}),
    "postgres-disk-full": DrillForm(
        "the disk of PostgreSQL's tables is full", {"PostgreSQL disk full": 4, **KILLS}, small_disk="tables"
    ),
    "held-lock": DrillForm("a forgotten transaction holds the rows of two jobs", {"row locks held": 4, **KILLS}),
    "quick-restart": DrillForm(
        "the quick worker restarts while storage is unavailable", {"quick without storage": 1, **KILLS}
    ),
    "promotion": DrillForm(
        "the primary is lost and its standby promoted, once", {"primary lost": 4, **KILLS}, has_standby=True
    ),
    "worker-disk-full": DrillForm(
        "the disk of temporary files is full", {"worker disk full": 4, **KILLS}, small_disk="temporary files"
    ),
}
