"""Who may come in, and how often: API keys and rates."""

from __future__ import annotations

from starlette.requests import Request

from nllb_prune.serving.http.fields import Fields
from nllb_prune.serving.http.keys import Key, KeyFile
from nllb_prune.serving.http.metrics import Metrics
from nllb_prune.serving.http.problems import Problem, wrong_type
from nllb_prune.serving.http.rates import Rates
from nllb_prune.serving.http.settings import ServerSettings

_NO_KEY = "Please contact the server operator to get an API key"
_WRONG_KEY = "Invalid API key"
_NO_ADMIN = "This needs an API key of an administrator"
_BEARER = "bearer "


class Door:
    """Lets requests in.

    Args:
        settings: Of the server.
        metrics: That are told of those who are sent away.

    Raises:
        UsageError: if the file of keys is not right.
    """

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._rates = Rates(settings.rate or 1)
        self._keys = KeyFile() if settings.keys is None else KeyFile.load(settings.keys)

    def reload(self) -> None:
        """Read the file of keys again; one that is not right changes nothing.

        Raises:
            UsageError: if it is not.
        """
        if self._settings.keys is not None:
            self._keys = KeyFile.load(self._settings.keys)

    @property
    def key_required(self) -> bool:
        """Whether requests must have a key."""
        return self._settings.keys is not None and self._settings.keys_required

    def enter(self, request: Request, fields: Fields, *, cost: int = 1) -> None:
        """Let a request in that costs as much as so many.

        Raises:
            Problem: without a key that is needed, with a wrong one, or too often.
        """
        key = self._key(request, fields)
        if key is None and self.key_required:
            raise self._refused("key", Problem(403, _NO_KEY))
        self._take(request, key, cost)

    def enter_admin(self, request: Request) -> None:
        """Let in what only an administrator may ask for.

        Raises:
            Problem: without a key of one.
        """
        key = self._key(request, {})
        if key is None or not key.admin:
            raise self._refused("key", Problem(403, _NO_ADMIN))

    def _key(self, request: Request, fields: Fields) -> Key | None:
        header = request.headers.get("authorization", "")
        given = header[len(_BEARER) :].strip() if header.lower().startswith(_BEARER) else fields.get("api_key")
        if given is not None and not isinstance(given, str):
            raise wrong_type("api_key", "a text")
        if self._settings.keys is None or not given:
            return None
        key = self._keys.find(given)
        if key is None:
            self._take(request, None, 1)  # so that guessing has a rate too
            raise self._refused("key", Problem(403, _WRONG_KEY))
        return key

    def _take(self, request: Request, key: Key | None, cost: int) -> None:
        rate = self._settings.rate if key is None or key.rate is None else key.rate
        if rate is None:
            return
        who = f"address {request.client.host if request.client else ''}" if key is None else f"key {key.name}"
        wait = self._rates.take(who, cost, per_minute=rate)
        if wait > 0:
            raise self._refused("rate", Problem(429, f"Slowdown: {rate} per 1 minute", retry_after=wait))

    def _refused(self, reason: str, problem: Problem) -> Problem:
        self._metrics.refused.labels(reason).inc()
        return problem
