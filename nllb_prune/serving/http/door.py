"""Who may come in, and how often: API keys, rates, and pages of other web sites."""

from __future__ import annotations

from dataclasses import dataclass

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
_OTHER_SITE = "Pages of other web sites may not use this server"
_BEARER = "bearer "


@dataclass(frozen=True, slots=True)
class Client:
    """Whose rate a request counts for: that of a key, or of an address."""

    name: str
    rate: int | None
    """Texts a minute; `None` for no limit."""


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
        self._keys, self._changed = KeyFile(), 0
        self.use(self.read())

    def read(self) -> KeyFile:
        """Return what the file of keys says now.

        Raises:
            UsageError: if it is not right.
        """
        return KeyFile() if self._settings.keys is None else KeyFile.load(self._settings.keys)

    def use(self, keys: KeyFile) -> None:
        """Let in those who have one of these keys from now on."""
        self._keys, self._changed = keys, self._written()

    def refresh(self) -> None:
        """Read the file of keys again if it was written to.

        Raises:
            UsageError: if it is not right; nothing has changed then.
        """
        if self._written() != self._changed:
            self._changed = self._written()  # one that is not right is complained of once
            self.use(self.read())

    def _written(self) -> int:
        """Return when the file of keys was written to."""
        path = self._settings.keys
        return path.stat().st_mtime_ns if path is not None and path.exists() else 0

    @property
    def key_required(self) -> bool:
        """Whether requests must have a key."""
        return self._settings.keys is not None and self._settings.keys_required

    def enter(self, request: Request, fields: Fields) -> Client:
        """Let a request in, which counts as one text until it is known how many there are.

        Raises:
            Problem: without a key that is needed, with a wrong one, too often, or from a page of another web site.
        """
        self._check_site(request)
        key = self._key(request, fields)
        if key is None and self.key_required:
            raise self._refused("key", Problem(403, _NO_KEY))
        client = self._client(request, key)
        self.charge(client, 1)
        return client

    def charge(self, client: Client, texts: int) -> None:
        """Count texts of a client.

        Raises:
            Problem: if these are too many for a while.
        """
        wait = self._rates.take(client.name, texts, per_minute=client.rate) if client.rate is not None else 0.0
        if wait > 0:
            raise self._refused("rate", Problem(429, f"Slowdown: {client.rate} per 1 minute", retry_after=wait))

    def enter_admin(self, request: Request) -> None:
        """Let in what only an administrator may ask for.

        Raises:
            Problem: without a key of one.
        """
        key = self._key(request, {})
        if key is None or not key.admin:
            raise self._refused("key", Problem(403, _NO_ADMIN))

    def _check_site(self, request: Request) -> None:
        """Refuse what a browser says to be of a page from elsewhere, forms too, which need nobody's leave."""
        allowed = self._settings.origins
        origin = request.headers.get("origin", "")
        if request.headers.get("sec-fetch-site") == "cross-site" and origin not in allowed and "*" not in allowed:
            raise self._refused("site", Problem(403, _OTHER_SITE))

    def _key(self, request: Request, fields: Fields) -> Key | None:
        header = request.headers.get("authorization", "")
        given = header[len(_BEARER) :].strip() if header.lower().startswith(_BEARER) else fields.get("api_key")
        if given is not None and not isinstance(given, str):
            raise wrong_type("api_key", "a text")
        if self._settings.keys is None or not given:
            return None
        key = self._keys.find(given)
        if key is None:
            self.charge(self._client(request, None), 1)  # so that guessing has a rate too
            raise self._refused("key", Problem(403, _WRONG_KEY))
        return key

    def _client(self, request: Request, key: Key | None) -> Client:
        if key is None:
            return Client(f"address {request.client.host if request.client else ''}", self._settings.rate)
        return Client(f"key {key.name}", self._settings.rate if key.rate is None else key.rate)

    def _refused(self, reason: str, problem: Problem) -> Problem:
        self._metrics.refused.labels(reason).inc()
        return problem
