"""A stand-in whose predictions tests read, cancel and end."""

from typing import Any

from simulation.provider import client


class Standin(client.Standin):
    """A stand-in process, with what only tests do at it."""

    def get_prediction(self, prediction_id: str) -> dict[str, Any]:
        return self._request("GET", f"/v1/predictions/{prediction_id}")

    def cancel_prediction(self, prediction_id: str) -> dict[str, Any]:
        return self._request("POST", f"/v1/predictions/{prediction_id}/cancel", {})

    def end_prediction(self, prediction_id: str) -> None:
        """End a prediction with success whose script never ends it. Raises StandinError before it has its outputs."""
        self._request("POST", f"/standin/predictions/{prediction_id}/succeed", {})

    def list_created(self, **fields: Any) -> list[dict[str, Any]]:
        """Return the ledger's lines of predictions with these fields: provider, model, key, prompt."""
        created = (line for line in self.get_ledger()["lines"] if line["kind"] == "prediction")
        return [line for line in created if all(line[name] == value for name, value in fields.items())]
