"""
`python -m bench.report`: replace the tables in the documentation by those of the last run of each part.

A page marks the place of a part's tables: `<!-- bench: PART -->` and, where they end, `<!-- end -->`. A part that did
not run leaves its table as it is.
"""

import re
import sys
from pathlib import Path
from typing import Final

from bench import results

PAGES: Final = ("docs/performance.md", "docs/explanation/scale.md")
PLACE: Final = re.compile(r"<!-- bench: ([\w-]+) -->\n.*?<!-- end -->", re.DOTALL)


def insert_tables(text: str, folder: Path = results.FOLDER) -> str:
    """Return a page with the tables of the parts that were saved in a folder."""

    def replace(match: re.Match[str]) -> str:
        part = match.group(1)
        try:
            content = results.load(part, folder)
        except FileNotFoundError:
            print(f"{part}: no run is saved; its table is unchanged")
            return match.group()
        tables = [results.Table(**table).format() for table in content["tables"]]
        notes = [results.wrap(note) for note in (" ".join(content["notes"]), content["description"]) if note]
        return "\n".join([f"<!-- bench: {part} -->", "\n\n".join([*tables, *notes]), "<!-- end -->"])

    return PLACE.sub(replace, text)


def main() -> int:
    for name in PAGES:
        path = results.ROOT / name
        if path.exists():
            path.write_text(insert_tables(path.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
