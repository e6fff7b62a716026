"""The controls of the stand-in under /standin: its ledger, its outages and its silence."""

from simulation.provider import webhooks
from simulation.provider.exchange import Answer, Refused, Request, is_authorized, json_object, not_found, problem
from simulation.provider.ledger import Ledger, summarise
from simulation.provider.outages import Outages


class Control:
    """Answers with what was done, and sets what is to go wrong everywhere."""

    def __init__(self, sender: webhooks.Sender, ledger: Ledger, outages: Outages, *, token: str) -> None:
        self._sender = sender
        self._ledger = ledger
        self._outages = outages
        self._token = token

    def admit(self, request: Request) -> None:
        """Raise Refused without the right key."""
        if not is_authorized(request, f"Bearer {self._token}"):
            raise Refused(problem(401, "Unauthenticated", "You did not pass a valid authentication token."))

    def answer(self, request: Request) -> Answer:
        """Return the answer to one request; raises Refused."""
        match request.method, request.steps:
            case "GET", ["ledger"]:
                lines = self._ledger.lines()
                return Answer(200, {"summary": summarise(lines), "lines": lines})
            case "POST", ["outage" | "silence" as what]:
                return self._away(what, request.body)
            case _:
                raise not_found()

    def _away(self, what: str, body: bytes) -> Answer:
        asked = json_object(body)
        seconds = asked.get("seconds")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds < 0:
            raise Refused(problem(422, "Input validation failed", "seconds must be a number, 0 or more"))
        if what == "silence":
            self._sender.silence(seconds)
        else:
            self._outages.begin(seconds, outputs=asked.get("outputs") is True)
        return Answer(200, {"seconds": seconds})
