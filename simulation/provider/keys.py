"""What the clients of the stand-in's APIs must send: one token, in three different forms, so that a mix-up shows."""

from typing import Final

FAL_USER: Final = "standin-user"  # whose webhooks they are


def fal(token: str) -> str:
    """Return FAL_KEY: an id and a secret."""
    return f"standin:{token}"


def openai(token: str) -> str:
    """Return OPENAI_API_KEY."""
    return f"sk-{token}"
