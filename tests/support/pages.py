"""Code blocks of the documentation, taken from the pages when a test runs."""

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
HOW_TO = ROOT / "docs/how-to"
_BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    language: str
    text: str


def read_blocks(page: Path, language: str | None = None) -> list[Block]:
    """Return the fenced blocks of a page in order, without their indentation."""
    blocks = (Block(kind, textwrap.dedent(text)) for _, kind, text in _BLOCK.findall(page.read_text(encoding="utf-8")))
    return [block for block in blocks if language in (None, block.language)]


def read_file(page: Path, name: str) -> str:
    """Return the one block whose first line is a comment with this file name."""
    (text,) = [block.text for block in read_blocks(page) if block.text.split("\n", 1)[0][2:].strip() == name]
    return text
