"""
The files that a response names: every URL, `data:` URI and base64 text in it, in document order, with its path.

Each of them is either an output of the model or a mention, with the reason why it is none: it repeats the request, is
part of a running text, or names a file a second time. Nothing that looks like a file is passed over in silence.
"""

import dataclasses
import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from json import dumps, loads
from typing import Any, Final, NamedTuple

from moorage.errors import DownloadRefused, MalformedPayload
from moorage.provider_types import OutputFile, PredictionReport
from moorage.text import to_storable
from moorage.urls import MAX_URL_CHARS, Endpoint, HostAllowlist, parse_endpoint
from providers import output_schemas
from providers.inline_files import decode_base64_file, decode_data_uri, is_base64_file, is_data_uri
from providers.output_schemas import Declares

MAX_FILES: Final = 1000
REPEATS_REQUEST: Final = "repeats the request"
_MAX_PATH_CHARS: Final = 400
_PLAIN_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
# Keys under which a response repeats its request, at any depth.
_REQUEST_KEYS: Final = {
    "input", "inputs", "request", "arguments", "prompt", "negative_prompt", "webhook", "webhook_url", "webhook_uri",
    "callback", "callback_url", "fal_webhook",
}  # fmt: skip
# Keys of links to the provider's API or pages; on a host of output files they name an output.
_LINK_KEYS: Final = {
    "get", "cancel", "stream", "web", "self", "next", "status_url", "response_url", "cancel_url", "polling_url",
    "logs_url",
}  # fmt: skip
_URL: Final = re.compile(r"https?://\S+", re.IGNORECASE)
# A URL with unescaped spaces: one that ends like the name of a file, and contains no other.
_SPACED_URL: Final = re.compile(r"https?://(?:(?!://)[^\r\n])+\.[a-z0-9]{2,5}(?:\?\S*)?", re.IGNORECASE)
_OTHER_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]{1,20}://\S+", re.IGNORECASE)
_IN_TEXT: Final = re.compile(r"https?://[^\s\"'<>\\^`{|}()\[\]]+|data:[\w.+-]+/[\w.+-]+[;,]", re.IGNORECASE)


class ExtractionResult(NamedTuple):
    """`mentions`: what is named, but is no output; `problem` has the reason."""

    outputs: tuple[OutputFile, ...] = ()
    mentions: tuple[OutputFile, ...] = ()


class _Item(NamedTuple):
    path: str
    key: str | None  # in an object
    is_request: bool  # part of a repeated request
    value: Any


def extract_files(
    value: Any,
    path: str,
    hosts: HostAllowlist,
    own: Collection[Endpoint] = (),
    declares: Declares = output_schemas.say_nothing,
) -> ExtractionResult:
    """
    Return the files in a JSON value, at any depth. Raises MalformedPayload for more than 1,000 outputs.

    Args:
        path: of the value itself ("output"); the rest is appended as `output[2]`, `output.images[0].url`.
        hosts: a URL on another host is an output with a problem; `is_foreign` is set.
        own: addresses of moorage: signed URLs of inputs, webhooks.
        declares: what the model's schema says about a path; it decides where key and host do not make it clear.
    """
    outputs: list[OutputFile] = []
    mentions: list[OutputFile] = []
    paths: dict[str, str] = {}  # by URL or text, of the first occurrence
    requested = _find_requested(value, path, hosts)
    for item in _iterate_strings(value, path):
        text = item.value.strip()
        for reference in islice(_find_references(item, text, hosts), MAX_FILES + 1):
            name = reference.url or text
            same = paths.setdefault(name, item.path) if reference.problem is None else item.path
            if (item.is_request or name in requested) and not declares(item.path):
                mentions.append(_mention(reference, REPEATS_REQUEST))
            elif reference.is_mention:
                mentions.append(reference)
            elif same != item.path:
                mentions.append(_mention(reference, f"names the same file as {same}"))
            else:
                file = _check_host(reference, item.key, hosts, own, declares)
                (mentions if file.is_mention else outputs).append(file)
        if len(outputs) > MAX_FILES:
            raise MalformedPayload(f"{path} has more than {MAX_FILES} files")
        if len(mentions) > MAX_FILES:
            mentions[MAX_FILES:] = [OutputFile(path, problem="further ones are not listed", is_mention=True)]
    return ExtractionResult(tuple(outputs), tuple(mentions))


def _find_requested(value: Any, path: str, hosts: HostAllowlist) -> set[str]:
    """Return the URLs and texts under the keys of a repeated request: elsewhere they are no outputs, either."""
    requests = ((item, item.value.strip()) for item in _iterate_strings(value, path) if item.is_request)
    found = ((file, text) for item, text in requests for file in _find_references(item, text, hosts))
    return {file.url or text for file, text in found if not file.is_mention}


def keep_outputs(files: ExtractionResult, paths: Collection[str], reason: str) -> ExtractionResult:
    """Return the files with the outputs at these paths only; the others become mentions."""
    others = tuple(_mention(file, reason) for file in files.outputs if file.path not in paths)
    return ExtractionResult(tuple(file for file in files.outputs if file.path in paths), files.mentions + others)


def is_unclear(report: PredictionReport) -> bool:
    """Return True if a model's output schema could decide otherwise than key and host did."""
    repeats_request = any(file.problem == REPEATS_REQUEST for file in report.mentions)
    return repeats_request or any(file.is_foreign for file in report.outputs)


def drop_inputs(report: PredictionReport, request: Any) -> PredictionReport:
    """Return the report without the outputs that repeat a URL of the prediction's input; they become mentions."""
    urls = {text for item in _iterate_strings(request, "") if (text := item.value.strip()) and "://" in text}
    if not urls or urls.isdisjoint(file.url for file in report.outputs):
        return report
    repeated = tuple(_mention(file, "repeats the input") for file in report.outputs if file.url in urls)
    outputs = tuple(file for file in report.outputs if file.url not in urls)
    return dataclasses.replace(report, outputs=outputs, mentions=report.mentions + repeated)


def _find_references(item: _Item, text: str, hosts: HostAllowlist) -> Iterator[OutputFile]:
    """Yield the file that a text is, else those it contains, as mentions."""
    if _URL.fullmatch(text) or _is_spaced_url(text, hosts):
        yield OutputFile(item.path, url=text)
    elif is_data_uri(text):
        yield decode_data_uri(item.path, text)
    elif is_base64_file(text, item.key):
        yield decode_base64_file(item.path, text)
    elif text.startswith("//") and hosts.refusal_reason(f"https:{text}") is None:
        yield OutputFile(item.path, url=f"https:{text}")
    elif _OTHER_SCHEME.fullmatch(text):
        yield OutputFile(item.path, url=text)
    else:
        for match in _IN_TEXT.finditer(text):
            found = match[0].rstrip(".,;:!?*_~")
            yield _mention(OutputFile(item.path, url=found), "is part of a text")


def _is_spaced_url(text: str, hosts: HostAllowlist) -> bool:
    return len(text) <= MAX_URL_CHARS and bool(_SPACED_URL.fullmatch(text)) and hosts.refusal_reason(text) is None


def _check_host(
    file: OutputFile, key: str | None, hosts: HostAllowlist, own: Collection[Endpoint], declares: Declares
) -> OutputFile:
    """Add to a URL the reason why it may not be downloaded, if there is one."""
    if file.url is None or (problem := hosts.refusal_reason(file.url)) is None:
        return file
    endpoint = _parse_endpoint(file.url)
    if endpoint in own:
        return _mention(file, "is an address of moorage")
    is_foreign = not hosts.contains(endpoint) if endpoint else not _URL.match(file.url)
    if is_foreign and key in _LINK_KEYS:
        return _mention(file, "is a link to the provider's API")
    declared = declares(file.path) if is_foreign else None
    if declared is False:
        return _mention(file, "is a text by the model's output schema")
    url = to_storable(file.url, MAX_URL_CHARS)
    return dataclasses.replace(file, url=url, problem=problem, is_foreign=is_foreign and not declared)


def _parse_endpoint(url: str) -> Endpoint | None:
    try:
        return parse_endpoint(url)
    except DownloadRefused:
        return None


def _mention(file: OutputFile, reason: str) -> OutputFile:
    url = None if file.url is None else to_storable(file.url, MAX_URL_CHARS)
    return OutputFile(file.path, url=url, problem=reason, is_mention=True)


def _iterate_strings(value: Any, path: str) -> Iterator[_Item]:
    """Yield every string in a JSON value, also of JSON in a string. Not recursive: JSON may be nested deeply."""
    levels: list[Iterator[_Item]] = [iter([_Item(path, None, False, value)])]
    while levels:
        for item in levels[-1]:
            value = _parse_text(item.value) if isinstance(item.value, str) else item.value
            if isinstance(value, dict | list):
                levels.append(_child_items(item, value))
                break
            if isinstance(value, str):
                yield item
        else:
            levels.pop()


def _parse_text(text: str) -> Any:
    """Return the object or list of a text that is JSON, else the text."""
    if text.lstrip()[:1] in ("{", "["):
        with suppress(ValueError, RecursionError):
            return loads(text)
    return text


def _child_items(parent: _Item, value: Mapping[str, Any] | list[Any]) -> Iterator[_Item]:
    path, is_request = parent.path, parent.is_request
    if isinstance(value, list):
        for index, child in enumerate(value):
            yield _Item(_shorten(f"{path}[{index}]"), parent.key, is_request, child)
        return
    for key, child in value.items():
        if "://" in key:
            yield _Item(path, None, is_request, f"the key {key}")
        repeats = is_request or key.lower() in _REQUEST_KEYS or key.lower().startswith("input_")
        yield _Item(_shorten(path + _format_key(key)), key, repeats, child)


def _format_key(key: str) -> str:
    return f".{key}" if _PLAIN_KEY.fullmatch(key) else f"[{dumps(key)}]"


def _shorten(path: str) -> str:
    """Shorten a path for a unique index: the end of a long one is replaced by a digest of the whole."""
    if len(path) <= _MAX_PATH_CHARS:
        return path
    digest = hashlib.sha256(path.encode()).hexdigest()[:32]
    return f"{path[: _MAX_PATH_CHARS - 33]}~{digest}"
