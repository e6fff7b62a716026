"""
Submissions to Black Forest Labs; how its webhooks and polls are read is declared in catalog/bfl.toml.

Source: black-forest-labs/skills (bfl-api/references), read 2026-11. A prediction is polled at the host that it was
submitted to, so that one must be of a region: `polling_url` of a response may name another one.
"""

from dataclasses import replace
from typing import Final

from moorage import logs
from moorage.errors import ProviderRefused, SubmitUncertain
from moorage.provider_types import PredictionReport, SubmitRequest, SubmitResult
from moorage.settings import Settings
from providers import declarations, endpoints, json_fields
from providers.declarations import Declaration
from providers.declared import DeclaredProvider

log = logs.get_logger(__name__)

_NOT_FOUND: Final = "Task not found"


class BflProvider(DeclaredProvider):
    """Webhooks are signed with the secret of their submission, the first that is declared; without one it is polled."""

    def __init__(self, settings: Settings, declaration: Declaration) -> None:
        super().__init__(settings, declaration)
        endpoints.validate_models(self.models, _parse_model, self.models_setting)
        self._base_url: Final = self._api_url.partition("/v1/")[0]
        names = declaration.webhook.secrets if declaration.webhook else ()
        self._secret = next((one.get_secret_value() for one in declarations.read_secrets(names)), None)

    def poll(self, external_id: str, model: str | None = None) -> PredictionReport:
        """Return the status; a task that is not found may be of another region, so that only its webhook ends it."""
        try:
            report = super().poll(external_id, model)
        except ProviderRefused as error:
            if error.facts.get("status") != 404:
                raise
            return PredictionReport(external_id, "unknown", _NOT_FOUND)
        return replace(report, status="unknown") if report.raw_status == _NOT_FOUND else report

    def submit(self, request: SubmitRequest) -> SubmitResult:
        client, url = self._require(self._submit_client), f"{self._base_url}/v1/{_parse_model(request.model)}"
        body, webhook_url = dict(request.input), request.webhook_url
        if webhook_url and self._secret:
            body |= {"webhook_url": webhook_url, "webhook_secret": self._secret}
        fields = client.send(url, body, webhook_url=webhook_url, secrets=[self._secret or ""]).fields
        with json_fields.translate_malformed(SubmitUncertain, f"{self.label} accepted a submission without an id"):
            external_id = json_fields.require_id(fields.get("id"), "id")
        if not str(fields.get("polling_url")).startswith(f"{self._base_url}/"):
            log.warning("submit.polled_elsewhere", provider=self.name, external_id=external_id, host=self._base_url)
        return SubmitResult(external_id)


def _parse_model(model: str) -> str:
    return "/".join(endpoints.split_model_name(model, "flux-2-pro"))
