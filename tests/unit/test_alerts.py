"""The alert rules and the dashboard as papers: whole, linked to the runbook, and read to the end; and their reader."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli import main
from moorage.settings import Settings
from receiver import app
from receiver.responses import KINDS
from tests.support import promql
from tests.support.exposition import render_metrics
from tests.support.promql import Sample
from worker import schedule

ROOT = Path(__file__).resolve().parents[2]
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "deploy/alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/moorage.json").read_text(encoding="utf-8"))
RUNBOOK = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
NOW = 1_700_000_000.0
SETTINGS = Settings(_env_file=None, database_url="postgresql://unused", broker_url="redis://unused")

alerts = pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])


def sections() -> dict[str, str]:
    """Return the runbook's sections by the anchors that GitHub and others make of their titles."""
    parts = RUNBOOK.split("\n## ")[1:]
    return {anchor(part.split("\n", 1)[0]): part.split("\n", 1)[1] for part in parts}


def anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


def test_there_are_twenty_one_alerts_with_names_of_their_own():
    """Each more is one that people learn to ignore."""
    assert len({rule["alert"] for rule in RULES}) == len(RULES) == 21


@alerts
def test_an_alert_says_what_it_means_and_leads_to_its_section(rule):
    """Whoever is woken has not read the code."""
    page, _, section = rule["annotations"]["runbook_url"].partition("#")

    assert rule["labels"]["severity"] in ("warning", "critical")
    assert re.fullmatch(r"[0-9]+m", rule["for"])
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert page == "docs/runbook.md"
    assert rule["alert"] in sections()[section], "the section does not name its alert"
    for label in ("What it means", "Look at", "Do", "Escalate"):
        assert f"**{label}" in sections()[section], label


@alerts
def test_an_alert_shows_only_labels_that_its_expression_leaves(rule):
    """{{ $labels.x }} of a label that was aggregated away is an empty word at 3 a.m."""
    shown = set(re.findall(r"\$labels\.(\w+)", "".join(rule["annotations"].values())))
    kept = set(re.findall(r"\w+", " ".join(re.findall(r"\bby \(([^)]*)\)", rule["expr"]))))

    assert shown <= kept


@pytest.mark.parametrize("sweep", schedule.sweep_periods(SETTINGS))
def test_a_sweep_that_fails_is_noticed_within_the_slots_that_are_kept(sweep):
    """Its alert never fired for reconcile: 600 s, and ticks of 200 s."""
    (rule,) = [rule for rule in RULES if rule["alert"] == "MoorageSweepFails"]
    oldest = 99 * schedule.slot_seconds(SETTINGS, sweep)

    sample = Sample("moorage_sweep_unfinished_seconds", {"sweep": sweep}, min(oldest, 700))

    assert promql.evaluate(promql.parse(rule["expr"]), [sample], NOW)


def test_the_panel_of_sweeps_shows_what_the_alert_fires_for():
    """Orphans, retention and usage may run for minutes."""
    (rule,) = [rule for rule in RULES if rule["alert"] == "MoorageSweepFails"]

    assert " ".join(rule["expr"].split()) in [t["expr"] for panel in DASHBOARD["panels"] for t in panel["targets"]]


def test_every_command_that_the_runbook_names_exists():
    """A command that is not there costs the minute that mattered."""
    named = set(re.findall(r"`moorage ([a-z]+)", RUNBOOK))

    assert {"recover", "pause", "resume"} <= named
    assert named - set(main.COMMANDS) == set()


def test_the_dashboard_reads_to_the_end_and_overlaps_nowhere():
    """A panel with a misspelt expression is an empty square, which looks like silence."""
    cells = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        for target in panel["targets"]:
            promql.parse(target["expr"])
        covered = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & covered, panel["title"]
        cells |= covered
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


# --- the reader itself: an evaluator that is always empty would let every alert pass


def found(text: str, *samples: Sample) -> Any:
    given = promql.evaluate(promql.parse(text), samples, NOW)
    return given if isinstance(given, float) else {tuple(sorted(labels)): value for labels, value in given.items()}


A1, A2 = Sample("a", {"x": "1", "y": "p"}, 3.0), Sample("a", {"x": "2", "y": "q"}, 5.0)
B1 = Sample("b", {"x": "1", "y": "p"}, 10.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 + 2 * 3", 7.0),
        ("(1 + 2) * 3", 9.0),
        ("10 - 4 - 3", 3.0),
        ("time()", NOW),
        ("a > 4", {(("x", "2"), ("y", "q")): 5.0}),
        ("4 < a", {(("x", "2"), ("y", "q")): 5.0}),
        ('a{x="1"}', {(("x", "1"), ("y", "p")): 3.0}),
        ('a{x!="1"}', {(("x", "2"), ("y", "q")): 5.0}),
        ('a{x=~"1|7"}', {(("x", "1"), ("y", "p")): 3.0}),
        ('a{x!~"1|7", y="q"}', {(("x", "2"), ("y", "q")): 5.0}),
        ("sum(a)", {(): 8.0}),
        ("max by (x) (a)", {(("x", "1"),): 3.0, (("x", "2"),): 5.0}),
        ("min(a) / 2 >= 1.5", {(): 1.5}),
        ("sum by (x) (a) / sum by (x) (b)", {(("x", "1"),): 0.3}),
        ("a > b", {}),
        ("b > a", {(("x", "1"), ("y", "p")): 10.0}),
        ("a and b", {(("x", "1"), ("y", "p")): 3.0}),
        ("a unless b", {(("x", "2"), ("y", "q")): 5.0}),
        ("b or a", {(("x", "1"), ("y", "p")): 10.0, (("x", "2"), ("y", "q")): 5.0}),
        ("b or a and c", {(("x", "1"), ("y", "p")): 10.0}),
        ('absent(c{x="1"})', {(("x", "1"),): 1.0}),
        ("absent(a)", {}),
        ("sum(c) > 0", {}),
    ],
)
def test_an_expression_is_evaluated_as_prometheus_does(text, expected):
    """Operators bind as its documentation says: or; and, unless; comparison; + and -; * and /."""
    assert found(text, A1, A2, B1) == expected


@pytest.mark.parametrize(
    "text", ["a >", "sum by x (a)", "a{x}", "a b", "avg(a)", "a offset 1h", "a > bool 1", "a[5", "§"]
)
def test_what_is_not_understood_is_refused(text):
    """Half of an expression proves nothing about the rest."""
    with pytest.raises(ValueError, match=r"missing|nothing|matcher|too much|known here|cannot be read"):
        promql.parse(text)


def test_every_metric_of_an_expression_is_named_with_the_labels_asked_of_it():
    """Also inside functions of a range, which are not evaluated."""
    node = promql.parse('sum by (x) (rate(a{y="p"}[5m])) / sum(b) > 0 or absent(c{z=~"1"})')

    assert sorted((name, sorted(labels)) for name, labels in node.uses()) == [
        ("a", ["x", "y"]),
        ("b", []),
        ("c", ["z"]),
    ]
    with pytest.raises(ValueError, match="more than one scrape"):
        found("rate(a[5m])", A1)


def test_what_is_known_to_be_counted_is_a_series_from_the_start():
    """A series that begins with its first increment has no rate until the second one."""
    settings = Settings(_env_file=None, database_url="postgresql://h/d", broker_url="redis://h", allow_unsigned="fal")
    app.Receiver(settings)
    text = render_metrics()

    for reason in {*app._UNAVAILABLE_REASONS.values(), "bytes_in_flight", "internal"}:
        assert f'moorage_webhooks_unavailable_total{{reason="{reason}"}} ' in text
    for reason in ("bad_signature", "not_found", "too_large", "too_slow", "unreadable"):
        assert f'moorage_webhooks_refused_total{{reason="{reason}"}} ' in text
        assert reason in KINDS.values()
    for series in ('wakes_dropped_total{reason="full"}', 'webhooks_recorded_total{provider="fal"}'):
        assert f"moorage_{series} " in text


def test_a_rate_is_that_of_two_scrapes():
    """Nothing divided by nothing is no alert; a counter that was not there before counts from zero."""
    before = [Sample("a", {"x": "1"}, 60.0), Sample("b", {}, 5.0)]
    now = [Sample("a", {"x": "1"}, 180.0), Sample("a", {"x": "2"}, 60.0), Sample("b", {}, 5.0)]

    def of(text: str) -> Any:
        return promql.evaluate(promql.parse(text), now, NOW, before)

    assert of("sum(rate(a[5m]))") == {frozenset(): 3.0}
    assert of("sum(increase(a[5m]))") == {frozenset(): 180.0}
    assert of("sum(rate(b[5m])) / sum(rate(b[5m])) > 0") == {}
    assert of("sum(rate(a[5m])) / sum(rate(b[5m])) > 5") == {frozenset(): float("inf")}
