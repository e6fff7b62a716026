"""A bench ends with an error where it would publish the figures of something else."""

import argparse
import socket
import sys

import pytest

from bench import receiver, results, streams


@pytest.mark.parametrize(
    "statuses",
    [{}, {"401": 20_000}, {"202": 20_000, "401": 1}, {"202": 1000, "503": 6}, {"503": 3}, {"lost": 1}],
)
def test_a_receiver_that_refuses_is_not_measured(statuses: dict[str, int]) -> None:
    """With every webhook refused the report said: 0 accepted, 0 missing."""
    with pytest.raises(SystemExit, match=r"moorage, peak: too few webhooks were accepted"):
        receiver.require_accepted("moorage, peak", statuses)


@pytest.mark.parametrize("statuses", [{"202": 20_000}, {"200": 1, "202": 9}, {"202": 2000, "503": 2, "lost": 1}])
def test_a_few_failed_requests_are_named(statuses: dict[str, int]) -> None:
    receiver.require_accepted("moorage, peak", statuses)

    failed = receiver.count_failed({"name": "moorage", "statuses": {"peak": statuses, "half": {"202": 1}}})
    assert failed == ({"moorage 503": 2, "moorage lost": 1} if "503" in statuses else {})


@pytest.mark.parametrize(("given", "part"), [([], "made-up"), (["--rounds", "3"], "made-up-custom")])
def test_a_run_with_other_arguments_has_a_name_of_its_own(
    monkeypatch: pytest.MonkeyPatch, given: list[str], part: str
) -> None:
    """The documentation describes the default: another run must not replace its table."""
    monkeypatch.setattr(sys, "argv", ["bench", *given])
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)

    run, args = results.start("made-up", parser)

    assert run.part == part
    assert args.rounds == int(["2", *given][-1])


@pytest.mark.parametrize("last", [b"", b"9\r\n: comment\r\n", b"0\r\n\r\n", None])
def test_a_stream_that_ended_is_not_an_idle_one(last: bytes | None) -> None:
    """Streams that the receiver has closed need no memory and no comments."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(last or b"")
        if last is None:
            theirs.close()

        if last is None or last.startswith(b"0"):
            with pytest.raises(SystemExit, match="1 of 1 streams ended"):
                streams.require_open([ours])
        else:
            streams.require_open([ours])
