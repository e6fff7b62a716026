"""A providers file: every entry of the catalog, a sender for each family that they lack, and compatible services."""

import re
import tomllib
from pathlib import Path
from typing import Final

import providers

CATALOG: Final = sorted((Path(providers.__file__).parent / "catalog").glob("*.toml"))
FILE: Final = "https://files.example/a.png"  # on the host that every entry allows here
MORE: Final = """
[timed]
output_hosts = ["files.example"]
[timed.webhook]
signature = "hmac"
secrets = ["OLD_TEXT", "NEW_TEXT"]
headers = ["X-Timed-Signature"]
prefix = "v0="
is_timed = true
[timed.fields]
id = "data.id"
status = "type"
outputs = "data.files"
[timed.statuses]
succeeded = ["file.made"]
failed = ["file.failed"]

[bearer]
output_hosts = ["files.example"]
[bearer.webhook]
signature = "token"
secrets = ["OLD_TEXT", "NEW_TEXT"]
headers = ["Authorization"]
scheme = "Bearer"
[bearer.fields]
id = "data.object.id"
status = "data.object.status"
outputs = "data.object.images[].url"
[bearer.statuses]
queued = ["PENDING"]
succeeded = ["COMPLETE"]
failed = ["FAILED"]

[together]
api = "openai"
base_url = "https://api.together.example"
token = "TOGETHER_API_KEY"
models = ["flux-schnell"]
output_hosts = ["files.example"]
[together.webhook]
signature = "standard"
secrets = ["OLD_WHSEC", "NEW_WHSEC"]

[cog]
api = "replicate"
base_url = "https://cog.example"
token = "COG_API_KEY"
output_hosts = ["files.example"]
[cog.webhook]
signature = "standard"
secrets = ["OLD_WHSEC", "NEW_WHSEC"]

[queue]
api = "fal"
base_url = "https://queue.example"
token = "QUEUE_API_KEY"
output_hosts = ["files.example"]
[queue.webhook]
signature = "digest"
headers = ["x-fal-webhook-request-id", "x-fal-webhook-user-id", "x-fal-webhook-timestamp", "x-fal-webhook-signature"]
jwks = ["https://queue.example/jwks.json"]
users = ["user_1"]
"""


def read_entry(path: Path) -> str:
    """Return the text of an entry of the catalog, filled in by a reader, with a former secret and one more host."""
    text = re.sub(r"output_hosts = \[", 'output_hosts = ["files.example", ', path.read_text(encoding="utf-8"))
    text = re.sub(r'secrets = \["(\w+)"\]', r'secrets = ["\1", "OLD_\1"]', text)
    return text.replace("YOUR_USER_ID", "user_1")


def write_file(path: Path) -> Path:
    path.write_text("\n".join([*map(read_entry, CATALOG), MORE]), encoding="utf-8")
    return path


def find_variables(path: Path) -> dict[str, set[str]]:
    """Return the names of the environment variables in a file of declarations: tokens and secrets."""
    tables = tomllib.loads(path.read_text(encoding="utf-8")).values()
    secrets = {name for table in tables for name in table.get("webhook", {}).get("secrets", ())}
    polled = (table if "api" in table else table.get("poll", {}) for table in tables)
    return {"secrets": secrets, "tokens": {table["token"] for table in polled if table}}
