"""POST /v1/jobs: have something generated. Everything is refused before anything is stored."""

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from db.connect import Connection, Database
from moorage import logs
from moorage.model import Entry, Wish
from moorage.text import storable
from providers.base import Provider
from tasks import order, references
from tasks.order import Ordered
from tasks.register import NotTheirs
from web import access, asked, attached, bodies, checking, desk, forms, inputs, problems, wishes
from web.attached import Attached
from web.checking import Checked
from web.problems import Problem
from web.threads import ANSWER_SECONDS
from web.wishes import Wished

log = logs.get(__name__)


async def submit(request: Request) -> Response:
    """Answer 202 with the new job, 200 with the one that an equal request under the same Idempotency-Key made."""
    at = desk.of(request)
    if not forms.is_form(request):
        body = await bodies.read_object(request)
        return await _answer(request, at, body, body, Attached())
    with at.intake.room(access.of(request).owner):
        form = await forms.read(request, at.intake, max_files=attached.MAX_FILES)
        try:
            return await _answer(request, at, *attached.read(form))
        finally:
            form.close()


async def _answer(
    request: Request, at: desk.Desk, said: Mapping[str, Any], body: dict[str, Any], files: Attached
) -> Response:
    """Answer an order; `said` is the body as it was written, before its files were given ids."""
    key = wishes.idempotency_key(request.headers.getlist("idempotency-key"))
    wished = wishes.read(body)
    access.of(request).whose(wished.owner)
    entries = wishes.chain(wished, at.settings)
    _check_providers(at.providers, entries)
    wish = wishes.wish(wished, entries, at.settings, key, wishes.sha256(said, await files.digests()))
    made, checked = await _take(at, wished, wish, files)
    log.info("job.ordered", job_id=made.job_id, prediction_id=made.prediction_id, is_new=made.is_new)
    location = f"{request.url.path}/{made.job_id}"  # with the prefix it was asked by
    return problems.answer(202 if made.is_new else 200, _fields(made, checked), {"Location": location})


async def _take(at: desk.Desk, wished: Wished, wish: Wish, files: Attached) -> tuple[Ordered, Checked]:
    """Return the job, known or new; the time of everything but the keeping of files is bounded as one."""
    deadline = asyncio.get_running_loop().time() + ANSWER_SECONDS
    try:
        async with asyncio.timeout_at(deadline) as limit:
            known = await _known(at, wish)
            if known is not None:
                return known, Checked(wish, [])
            await at.threads.run(lambda database: database.run(lambda conn: _check_files(conn, wished, wish, files)))
            checked = await checking.check(at, wish)
            if files.files:
                limit.reschedule(None)  # keeping has limits of its own
                checked = Checked(await files.keep(at, checked.wish), checked.unchecked)
                limit.reschedule(asyncio.get_running_loop().time() + ANSWER_SECONDS)
            return await at.threads.run(lambda database: _order(database, at, checked.wish)), checked
    except TimeoutError as error:
        raise problems.unavailable(f"there was no answer within {ANSWER_SECONDS:g} s: send it again") from error


def _fields(made: Ordered, checked: Checked) -> dict[str, Any]:
    fields = {
        "job_id": made.job_id,
        "prediction_id": made.prediction_id,
        "state": made.state,
        "is_new": made.is_new,
    }
    if made.is_new:
        fields |= {"checked": not checked.unchecked, "unchecked": checked.unchecked}
    return fields


async def _known(at: desk.Desk, wish: Wish) -> Ordered | None:
    """Return the job of an equal order: it is found again whatever became of files and providers since."""
    if wish.idempotency_key is None:
        return None
    try:
        return await at.threads.run(lambda database: database.run(lambda conn: order.find(conn, wish)))
    except order.KeyTaken as error:
        raise Problem(409, str(error)) from error


def _order(database: Database, at: desk.Desk, wish: Wish) -> Ordered:
    try:
        made = order.order(database, at.settings, at.providers, wish)
    except order.KeyTaken as error:
        raise Problem(409, str(error)) from error
    except NotTheirs as error:
        raise asked.wrong("project_id", str(error)) from error
    at.relay.offer(*made.wakes)
    return made


def _check_files(conn: Connection, wished: Wished, wish: Wish, coming: Attached) -> None:
    """Refuse files that do not exist or are another owner's, in the same words: ids are not to be tried out."""
    errors = []
    for n, entry in enumerate(wish.chain):
        named = [r for r in references.named(dict(entry.input)) if str(r.file_id) not in coming.files]
        field = wishes.field_of(wished, n)
        for gone in references.missing(conn, wish.owner, named):
            errors.append(inputs.wrong(f"{field}.{gone.place}", f"names {gone.text}, which {wish.owner} does not have"))
    if errors:
        raise asked.invalid(errors)


def _check_providers(providers: Mapping[str, Provider], entries: tuple[Entry, ...]) -> None:
    errors = [
        {"field": f"chain[{n}].provider", "message": why}
        for n, entry in enumerate(entries)
        if (why := _why_not(providers, entry.provider))
    ]
    if errors:
        raise asked.invalid(errors)


def _why_not(providers: Mapping[str, Provider], name: str) -> str | None:
    provider = providers.get(name)
    if provider is None:
        return f"{storable(name, 60)!r} does not exist: write one of {', '.join(sorted(providers))}"
    if provider.can_submit:
        return None
    if provider.ordered_by is None:
        return f"{name} takes no orders from moorage"
    return f"{name} cannot be asked: set {provider.ordered_by} where moorage runs"
