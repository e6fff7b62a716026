"""The stand-in's ledger as the verdict on orders reads it: what was made for which prompt, and whether all is told."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from simulation.chaos.submission_load import Ordered


@dataclass(frozen=True, slots=True)
class Ledger:
    """The stand-in's lines, by prediction and prompt."""

    made: Mapping[str, list[Mapping[str, Any]]]  # by prompt
    ended: Mapping[str, str]
    files: Mapping[str, dict[str, Mapping[str, Any]]]  # that readers are to be shown, by prediction and path
    told: frozenset[str]  # predictions whose end was told by a webhook that was answered 2xx


def read(lines: Iterable[Mapping[str, Any]]) -> Ledger:
    """Return the stand-in's ledger in the order in which it is asked here."""
    made: dict[str, list[Mapping[str, Any]]] = {}
    files: dict[str, dict[str, Mapping[str, Any]]] = {}
    ended: dict[str, str] = {}
    told = set()
    for line in lines:
        if line["kind"] == "prediction":
            made.setdefault(str(line["prompt"]), []).append(line)
        elif line["kind"] == "ended":
            ended[line["prediction"]] = line["status"]
        elif line["kind"] == "output" and line["expected"] in ("kept", "unseen"):
            files.setdefault(line["prediction"], {})[line["path"]] = line
        elif line["kind"] == "webhook" and line["event"] == "completed" and 200 <= (line["http_status"] or 0) < 300:
            told.add(line["prediction"])
    return Ledger(made, ended, files, frozenset(told))


def is_told(lines: Iterable[Mapping[str, Any]], ordered: Iterable[Ordered]) -> bool:
    """Return whether all that was made for the orders has ended, and every webhook of an end has arrived."""
    ledger = read(lines)
    return all(
        made["prediction"] in ledger.ended and (made["prediction"] in ledger.told or not entry.sends_webhook)
        for one in ordered
        for entry in one.order.chain
        for made in ledger.made.get(entry.prompt, ())
    )
