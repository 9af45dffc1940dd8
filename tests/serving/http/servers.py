"""Servers for tests: in a thread on a socket of their own, with a backend that does as it is told."""

import asyncio
import threading
import time
from contextlib import contextmanager

import httpx

from nllb_prune.errors import UsageError
from nllb_prune.generation.translate import Translation
from nllb_prune.serving.figures import Figures
from nllb_prune.serving.http.app import make_app
from nllb_prune.serving.http.backend import Description, ReplicaState
from nllb_prune.serving.http.server import Ending, configured
from nllb_prune.serving.http.settings import ServerSettings
from nllb_prune.serving.memory import MemoryPlan
from nllb_prune.serving.sides import LanguageSide
from nllb_prune.serving.texts import TranslatedText, Work

LANGUAGES = ("eng_Latn", "deu_Latn", "spa_Latn", "zho_Hans", "arb_Arab")


class Upper:
    """Translates into capital letters, after so many seconds a text; `deu_Latn` is only translated into."""

    def __init__(self, seconds=0.0):
        self.seconds, self.asks, self.cancelled, self.error = seconds, [], 0, None
        self.open, self.masks, self.closed = True, "0123456789ab", None

    async def describe(self):
        pairs = [(a, b) for a in LANGUAGES for b in LANGUAGES if a != b and a != "deu_Latn"]
        return Description(model="upper", directions=tuple(pairs), masks=self.masks, offers_full=True, beams=4)

    async def translate(self, ask):
        self.asks.append(ask)
        try:
            await asyncio.sleep(self.seconds * len(ask.texts))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return [self._translated(text, ask) for text in ask.texts]

    def _translated(self, text, ask):
        ranks = [text.upper() + "!" * rank for rank in range(ask.search.alternatives)]
        sentence = tuple(Translation(each, -1.0, -0.5, -0.5, True) for each in ranks)
        work = Work(source_tokens=len(text), target_tokens=len(text), waited=0.01, translating=self.seconds)
        return TranslatedText(ranks[0], tuple(ranks[1:]), (sentence,), work)

    async def stream(self, ask):
        self.asks.append(ask)
        try:
            for number, part in enumerate(ask.texts[0].upper().split(" ")):
                await asyncio.sleep(self.seconds)
                if self.error is not None and number:
                    raise self.error
                yield part if number == 0 else " " + part
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        yield self._translated(ask.texts[0], ask)

    async def sides_of(self, source, target, *, full):
        kept = tuple(range(8 if full else 2))
        return tuple(_side(stack, key, kept) for stack, key in (("encoder", source), ("decoder", target)))

    async def states(self):
        plan = MemoryPlan(fixed=10, experts=20, working=None, slots={}, paged=False)
        figures = Figures(
            sentences=len(self.asks),
            waiting=0,
            in_flight=0,
            steps=3,
            rows=6,
            source_tokens=5,
            target_tokens=5,
            swaps=0,
            experts_moved=0,
            bytes_moved=0,
            resident=("decoder.deu_Latn",),
            working_peak=0,
        )
        sides = tuple(_side("decoder", code, (0, 1)) for code in LANGUAGES)
        return [ReplicaState(name="upper", figures=figures, plan=plan, sides=sides)]

    async def reload(self):
        if self.error is not None:
            raise self.error
        self.masks = "ba9876543210"
        return await self.describe()

    async def close(self, *, drain):
        self.closed = drain


def _side(stack, key, kept):
    return LanguageSide(
        stack=stack, key=key, mask=(kept, kept), experts_of_layer=8, layers=(1, 3), bytes=100, resident=True
    )


class Server:
    def __init__(self, url, state):
        self.url, self.state = url, state
        self.client = httpx.Client(base_url=url, timeout=30)

    def post(self, path, content, **named):
        return self.client.post(path, json=content, **named)

    def translate(self, q="good morning", source="en", target="de", **named):
        return self.post("/translate", {"q": q, "source": source, "target": target, **named})


@contextmanager
def serving(backend, *, failed=None, **settings):
    """A server on a free port of this machine, ready."""

    async def opening():
        return backend

    app = make_app(opening, ServerSettings(**settings), failed=failed)
    with running(app) as url:
        server = Server(url, app.state.server)
        yield server
        server.client.close()


@contextmanager
def running(app, *, ready=True):
    server = Ending(configured(app, port=0, drain=5), app.state.server)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started and server.servers and server.servers[0].sockets)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        if ready:
            wait_until(lambda: httpx.get(url + "/ready", timeout=60).status_code == 200)
        yield url
    finally:
        server.should_exit = True
        thread.join(20)


def wait_until(true, *, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.01)


class Refusing(Upper):
    def __init__(self):
        super().__init__()
        self.error = UsageError("`masks` must be right, but are not.")
