"""Wakes for the predictions whose turn it is to be submitted: after a place became free, or one was planned."""

from collections.abc import Mapping

from db import submission_turns
from db.connection import Connection
from moorage.model import Step, Wake
from moorage.settings import Settings
from providers.base import Provider


def get_step(provider: Provider) -> Step:
    """Return the step that submits to a provider."""
    return "generate" if provider.is_synchronous else "submit"


def wake_next(conn: Connection, settings: Settings, providers: Mapping[str, Provider]) -> list[Wake]:
    """Return wakes for what the providers have capacity for, but none that was woken in the last 2 s."""
    return submission_turns.wake(conn, settings, {name: get_step(provider) for name, provider in providers.items()})
