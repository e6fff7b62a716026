"""Tables of a bench in the documentation come from its last run."""

import json
from pathlib import Path

import pytest

from bench import __main__ as bench
from bench import report, results

PAGE = "Before.\n\n<!-- bench: made-up -->\nold\n<!-- end -->\n\n<!-- bench: other -->\nkept\n<!-- end -->\nAfter.\n"


def test_a_saved_run_replaces_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures that are copied by hand are wrong sooner or later."""
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    run = results.Run("made-up")
    run.tables = [results.Table(["what", "figure"], [["outputs/s", "27.4"]])]
    run.notes = ["Two rounds."]
    run.save()

    text = report.insert_tables(PAGE, tmp_path)

    assert "| what | figure |\n| --- | --- |\n| outputs/s | 27.4 |\n\nTwo rounds.\n\n" in text
    assert json.loads((tmp_path / "made-up.json").read_text())["description"] in text.replace("\n", " ")
    assert "old" not in text
    assert "<!-- bench: other -->\nkept\n<!-- end -->\nAfter." in text
    assert report.insert_tables(text, tmp_path) == text


def test_every_place_of_a_table_names_a_part() -> None:
    """A misspelt name would leave an old table in the page for ever."""
    places = {
        part
        for name in report.PAGES
        if (results.ROOT / name).exists()
        for part in report.PLACE.findall((results.ROOT / name).read_text())
    }

    assert places <= set(bench.PARTS)
    assert all((results.ROOT / "bench" / f"{part}.py").exists() for part in bench.PARTS)


def test_each_round_reverses_the_order() -> None:
    """A machine that slows down during a run must not always hit the same candidate."""
    order: list[str] = []

    rounds = results.alternate(["a", "b"], lambda name: order.append(name) or {"rate": len(order)}, rounds=2)

    assert order == ["a", "b", "b", "a"]
    assert results.median_ratio(rounds, "b", "a", "rate") == pytest.approx((2 / 1 + 3 / 4) / 2)
