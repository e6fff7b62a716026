"""API keys of the stand-in: one token in three formats, so that a mix-up of keys is detected."""

from typing import Final

FAL_USER: Final = "standin-user"  # the user id in fal's webhooks


def fal_key(token: str) -> str:
    return f"standin:{token}"


def openai_key(token: str) -> str:
    return f"sk-{token}"
