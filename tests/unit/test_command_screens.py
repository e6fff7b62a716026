"""What commands print on a terminal of 80 columns, and how they are found."""

import shlex
import sys
import types
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import pytest
from click.testing import CliRunner

from cli import console, main
from cli.commands import show, status
from db.reports.records import RecordReport
from moorage.problems import Problem
from moorage.settings import Settings
from tests.unit.test_problems import QUIET
from worker import boot

NOW = datetime(2026, 11, 29, 22, 26, 18, 750_000, tzinfo=UTC)
JOB, PREDICTION, OUTPUT = (uuid.UUID(f"01a226e7-b44a-7ff4-b245-2bec5f1f21c{n}") for n in range(3))
REASON = "the file is larger than MOORAGE_IMAGE_MAX_BYTES allows; raise the limit, and replay the dead letter"
SCREEN = {
    **QUIET, "at": NOW, "locked": [], "storage_use": [], "deliveries": {}, "jobs": {}, "predictions": {}, "outputs": {},
    "notifications": {}, "breakers": [],
    "leases": [{"leased_by": "keep@a/1", "is_over": False, "subject": "output", "id": OUTPUT, "attempt": 1,
                "leased_until": NOW, "renewed_seconds_ago": 3.0}],
    "sweeps": [{"sweep": "dispatch", "period_seconds": 1.0, "last_at": NOW, "is_late": False, "is_failed": True}],
    "providers": [
        {"provider": name, "takes_webhooks": True, "can_poll": True, "takes_orders": True, "last_webhook_at": NOW,
         "new": 0, "unmatched": 0, "at_work": 0, "at_once": 10, "planned": 0} for name in ("fal", "standard")
    ],
}  # fmt: skip


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_a_table_that_is_too_wide_is_printed_in_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    """Folded cells of eight columns could not be read."""
    console.print_parts(console.build_table("Wide", ("count", "error", "example"), [(2, "DownloadRefused", REASON)]))
    console.print_parts(console.build_table("Narrow", ("count", "error"), [(2, "DownloadRefused")]))

    wide, _, narrow = capsys.readouterr().out.partition("\n\n")
    assert wide.splitlines() == [
        "Wide",
        "- count: 2  error: DownloadRefused",
        "  example: the file is larger than MOORAGE_IMAGE_MAX_BYTES allows; raise the",
        "  limit, and replay the dead letter",
    ]
    assert narrow.splitlines()[1].split() == ["count", "error"]


def report() -> RecordReport:
    """A job of one output, with a long key and a long reason."""
    output = {"id": OUTPUT, "path": "output[0]", "state": "kept", "attempt": 1, "format": "png", "bytes": 15626}
    prediction = {"id": PREDICTION, "state": "succeeded", "provider": "replicate", "model": "owner/model"}
    common = {"subject": "output", "subject_id": OUTPUT, "actor": "keep1@host/0b5e1b0e-0000"}
    return RecordReport(
        "job", JOB, NOW, {"id": JOB, "state": "succeeded", "created_at": NOW, "reason": REASON, "chain": []},
        [{**prediction, "ended_by": "webhook", "external_id": "nsqmjn4ky4at2mdcx42rv2efhd", "reason": None}],
        [{**output, "key": f"renders/{JOB}/0.png", "reason": REASON}], [], [], [],
        [
            {**common, "from_state": None, "to_state": "waiting", "at": NOW, "reason": "output[0]"},
            {**common, "from_state": "waiting", "to_state": "kept", "at": NOW + timedelta(milliseconds=350),
             "reason": REASON},
            {**common, "from_state": "kept", "to_state": "kept", "at": NOW + timedelta(seconds=400), "reason": None},
        ],
        ["nothing: it has ended"],
    )  # fmt: skip


def test_show_fits_80_columns_but_for_addresses() -> None:
    """An id that ends in the next line, or a URL that is broken, cannot be copied."""
    lines = show._format_report(report(), lambda key: f"https://files.example.com/{key}")

    text = "\n".join(lines)
    assert [line for line in lines if len(line) > 80 and "https://" not in line] == []
    assert f"    stored https://files.example.com/renders/{JOB}/0.png" in lines
    assert f"  {str(PREDICTION)[:18]}  succeeded  replicate  owner/model  by webhook" in lines
    assert "  22:26:18.7  2026-11-29  output[0]  created > waiting  keep1@host" in lines
    assert "  22:26:19.1  +0.35 s     output[0]  waiting > kept     keep1@host" in lines
    assert "  22:32:58.7  +7 min      output[0]  kept > kept        keep1@host" in lines
    assert "  created_at  2026-11-29 22:26:18.7 (0 ms ago)" in lines
    assert text.endswith("next: nothing: it has ended")


def run_status(monkeypatch: pytest.MonkeyPatch, problems: list[Problem], *args: str) -> Any:
    settings = Settings(_env_file=None, database_url="postgresql://h/d", broker_url="redis://h", allow_unsigned="fal")
    deps = types.SimpleNamespace(settings=settings, database=None)
    monkeypatch.setattr(boot, "get_deps", lambda: deps)
    monkeypatch.setitem(sys.modules, "worker.celery", types.ModuleType("worker.celery"))
    monkeypatch.setattr(status, "collect_status", lambda *_: {**SCREEN, "problems": problems})
    return CliRunner().invoke(status.status, args)


PROBLEM = Problem("queue_without_worker", "critical", "queue keep has 12 wakes and no worker", "start one", "a-queue")


def test_status_begins_with_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """At three in the night the first line has to say whether to go on reading."""
    clear = run_status(monkeypatch, [])
    bad = run_status(monkeypatch, [PROBLEM])

    assert clear.output.startswith("All clear\n\nProviders")
    assert bad.output.splitlines()[:3] == [
        "1 problem", "  critical: queue keep has 12 wakes and no worker", "    start one (docs/runbook.md#a-queue)",
    ]  # fmt: skip
    assert (clear.exit_code, bad.exit_code) == (0, 0)
    assert [line for line in bad.output.splitlines() if len(line) > 80] == []


def test_webhooks_taken_without_a_signature_are_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "signed" stood there for a provider of which any client can send webhooks."""
    lines = run_status(monkeypatch, []).output.splitlines()

    assert [line.split()[1] for line in lines if line.startswith(("fal ", "standard "))] == ["unsigned", "signed"]


def test_check_prints_the_verdict_and_fails_on_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """Monitoring reads the exit status."""
    clear = run_status(monkeypatch, [], "--check")
    bad = run_status(monkeypatch, [PROBLEM], "--check")

    assert (clear.output, clear.exit_code) == ("All clear\n", 0)
    assert (len(bad.output.splitlines()), bad.exit_code) == (3, 1)


def test_watch_shows_it_again_until_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends without an error: that is how it is meant to be ended."""
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(status.time, "sleep", sleep)
    done = run_status(monkeypatch, [], "--watch")

    assert (done.exit_code, done.output.count("All clear")) == (0, 3)


def test_a_misspelt_command_is_answered_with_the_right_one() -> None:
    """`moorage stauts` is a slip; the list of 24 commands is no help."""
    assert "No such command 'stauts'. Did you mean 'status'?" in CliRunner().invoke(main.cli, ["stauts"]).output


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_has_an_example_that_can_be_run(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """It is pasted. Shown by `moorage --help` and by the command's own help."""
    monkeypatch.setitem(sys.modules, "worker.celery", types.SimpleNamespace(app=None))
    (tmp_path / "my-pictures").mkdir()
    monkeypatch.chdir(tmp_path)
    example = main.COMMANDS[name][2]
    args = shlex.split(example.partition(" > ")[0])
    command = main.cli.get_command(click.Context(main.cli), args[0])
    assert command is not None

    if isinstance(command, click.Group):
        command = command.get_command(click.Context(command), args[1])
        assert command is not None
        del args[0]
    command.make_context(args[0], args[1:])

    assert f"$ moorage {example}" in CliRunner().invoke(main.cli, ["--help"]).output
    assert example.split()[0] == name
