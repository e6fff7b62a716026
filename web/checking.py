"""An order against what its providers say: the model is chosen where it is left open, the input is checked."""

import asyncio
import dataclasses
from dataclasses import dataclass
from typing import Any

from moorage.errors import ProviderRefused, ProviderUnavailable
from moorage.model import Entry, Wish
from tasks import references
from web import asked, matching, wishes
from web.desk import Desk
from web.inputs import wrong
from web.problems import Problem, unavailable

_ADDRESS = "https://files.example/input"  # stands for the signed one that the provider will be given
_PICTURES = ("image", "images", "input_image", "start_image", "first_frame_image", "image_url")


@dataclass(frozen=True, slots=True)
class Checked:
    """An order whose models are all named, and why some of its entries could not be checked."""

    wish: Wish
    unchecked: list[str]


@dataclass(frozen=True, slots=True)
class _Judged:
    entry: Entry
    errors: list[dict[str, str]]
    unchecked: str | None


async def check(at: Desk, wish: Wish) -> Checked:
    """
    Return the order as it is to be stored. A provider that is away is no reason to refuse it.

    Raises:
        Problem: 422 for an input that a model does not take, and for a model that does not exist; 503 where a model is
            to be chosen and its provider is away.
    """
    judged = await asyncio.gather(*(_judge(at, wish, n) for n in range(len(wish.chain))))
    errors = [error for one in judged for error in one.errors]
    if errors:
        raise asked.invalid(errors)
    chain = tuple(one.entry for one in judged)
    return Checked(dataclasses.replace(wish, chain=chain), [one.unchecked for one in judged if one.unchecked])


async def _judge(at: Desk, wish: Wish, n: int) -> _Judged:
    entry, place = wish.chain[n], f"chain[{n}]"
    provider = at.providers[entry.provider]
    try:
        if entry.model == wishes.AUTO:
            entry = dataclasses.replace(entry, model=await _choose(at, wish, entry, place))
        schema = await at.catalogue.schema(provider, entry.model)
        if schema is None:
            return _Judged(entry, [], f"{place}: {entry.provider} offers no schema of {entry.model}")
        named = references.named(dict(entry.input))
        filled = references.replaced(dict(entry.input), {found.text: _ADDRESS for found in named})
        return _Judged(entry, matching.problems_of(filled, schema, f"{place}.input"), None)
    except ProviderUnavailable as error:
        return _Judged(entry, [], f"{place}: {error}")
    except matching.BadSchema as error:
        return _Judged(entry, [], f"{place}: the schema of {entry.model} cannot be used: {error}"[:500])
    except ProviderRefused as error:
        return _Judged(entry, [wrong(f"{place}.model", str(error))], None)


async def _choose(at: Desk, wish: Wish, entry: Entry, place: str) -> str:
    """Return the provider's first model of the job's kind that accepts a picture exactly when the input has one."""
    try:
        models = await at.catalogue.models(at.providers[entry.provider], wish.kind)
    except ProviderUnavailable as error:
        raise unavailable(f"{place}.model: {entry.provider} cannot be asked for its models now: name one") from error
    has_picture = _has_picture(entry.input)
    for model in models:
        if ("image" in (model.get("accepts") or ())) == has_picture:
            return str(model["name"])
    wanted = f"{wish.kind} model that takes {'a' if has_picture else 'no'} picture"
    raise Problem(422, f"{place}.model: {entry.provider} names no {wanted}", errors=_unnamed(place, wanted))


def _unnamed(place: str, wanted: str) -> list[dict[str, str]]:
    return [{"field": f"{place}.model", "message": f"the provider names no {wanted}: write one"}]


def _has_picture(value: Any) -> bool:
    if references.named(dict(value)):
        return True
    return any(isinstance(value.get(name), str | list) and value.get(name) for name in _PICTURES)
