"""The stand-in's ledger, indexed for the checks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from simulation.cases import CaseRun
from simulation.provider.ledger import is_acknowledged

Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class LedgerIndex:
    """The ledger's summary (see `provider/ledger.py`), and its lines by prediction or prompt."""

    summary: Mapping[str, Any]
    created: Mapping[str, Sequence[Line]]  # lines of predictions, by prompt
    statuses: Mapping[str, str]  # of ended predictions
    files: Mapping[str, Mapping[str, Line]]  # lines of outputs that may be published, by prediction and path
    reported: frozenset[str]  # predictions whose end was reported by an acknowledged webhook
    of_fal: Mapping[str, str]  # prediction ids by the webhook ids of fal

    @classmethod
    def build(cls, ledger: Mapping[str, Any]) -> Self:
        created: dict[str, list[Line]] = {}
        files: dict[str, dict[str, Line]] = {}
        statuses, reported, of_fal = {}, set(), {}
        for line in ledger["lines"]:
            match line["kind"]:
                case "prediction":
                    created.setdefault(str(line["prompt"]), []).append(line)
                case "ended":
                    statuses[line["prediction"]] = line["status"]
                case "output" if line["expected"] in ("kept", "unseen"):
                    files.setdefault(line["prediction"], {})[line["path"]] = line
                case "webhook":
                    if line["event"] == "completed" and is_acknowledged(line):
                        reported.add(line["prediction"])
                    if line["provider"] == "fal":
                        of_fal[line["webhook_id"]] = line["prediction"]
        return cls(ledger["summary"], created, statuses, files, frozenset(reported), of_fal)

    def webhook_ids(self, kind: str) -> set[str]:
        """Return the ids of "acknowledged" or "unacknowledged" webhooks; fal's are identified by the prediction."""
        return {self.of_fal.get(webhook_id, webhook_id) for webhook_id in self.summary[kind]}

    def has_reported(self, runs: Iterable[CaseRun]) -> bool:
        """Return True if all predictions of job requests have ended, and their webhooks were acknowledged."""
        return all(
            line["prediction"] in self.statuses and (line["prediction"] in self.reported or not entry.sends_webhook)
            for run in runs
            for number, entry in enumerate(run.case.chain)
            for line in self.created.get(run.case.prompt(number), ())
        )
