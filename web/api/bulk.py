"""Apply one operation to many rows: each in a transaction of its own, with its own result."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import Field

from moorage.errors import Refused
from web.api.responses import BulkResult, RefusedRequest
from web.http.problems import Problem

MAX_IDS: Final = 100
RowId = Annotated[UUID, Field(strict=False)]  # as text


async def apply_to_each(row_ids: Sequence[UUID], operate: Callable[[UUID], Awaitable[Any]]) -> BulkResult:
    """Return which rows were changed, now or before, and why the others were not. Raises Problem: 503."""
    changed, refused = [], []
    for row_id in dict.fromkeys(row_ids):
        try:
            await operate(row_id)
        except (Problem, Refused) as error:
            if error.status == 503:  # the rest would fail, too: the request is repeated
                raise
            refused.append(RefusedRequest(id=row_id, status=error.status, message=str(error)))
        else:
            changed.append(row_id)
    return BulkResult(changed=changed, refused=refused)
