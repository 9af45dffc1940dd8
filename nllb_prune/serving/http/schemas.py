"""The shapes of requests and answers, for the OpenAPI document and the answers' own check."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Depends
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field

KEY = [Depends(HTTPBearer(auto_error=False, description="An API key, where the server needs one"))]
"""What the document says of routes that take a key; `Door` looks at it."""

_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
_Text = Annotated[str, Field(min_length=1)]
_Code = Annotated[str, Field(min_length=1, examples=["en", "eng_Latn"])]


class Model(BaseModel):
    """What all have in common."""

    model_config = ConfigDict(extra="forbid")


class Error(Model):
    """What went wrong."""

    error: str


class Status(Model):
    """That all is well."""

    status: str


class Detection(Model):
    """A language that a text may be in."""

    language: str
    confidence: Annotated[float, Field(ge=0, le=100, description="Percent")]


class DetectRequest(BaseModel):
    """Text whose language is to be found out."""

    q: Annotated[_Text, Field(examples=["weck mich um neun uhr"])]
    api_key: str | None = None


class TranslateRequest(BaseModel):
    """Texts to translate."""

    q: Annotated[_Text | Annotated[list[str], Field(min_length=1)], Field(examples=["wake me up at nine"])]
    source: Annotated[_Code, Field(description="A language, or `auto`", examples=["en", "auto"])]
    target: Annotated[_Code, Field(examples=["de"])]
    format: Literal["text", "html"] | None = "text"
    alternatives: Annotated[int | None, Field(description="Further translations of each text")] = 0
    api_key: str | None = None


class Translated(Model):
    """Translations: a list for a list, a text for a text."""

    translatedText: str | list[str]  # noqa: N815
    detectedLanguage: Annotated[  # noqa: N815
        Detection | list[Detection] | None, Field(description="Only where `source` was `auto`")
    ] = None
    alternatives: Annotated[list[str] | list[list[str]] | None, Field(description="Only where some were asked for")] = (
        None
    )


class Language(Model):
    """A language that is translated from."""

    code: str
    name: str
    targets: list[str]


class SettingsLanguage(Model):
    """A language that a page shows first."""

    code: str
    name: str


class SettingsLanguages(Model):
    """Those of both sides."""

    source: SettingsLanguage
    target: SettingsLanguage


class FrontendSettings(Model):
    """What clients want to know of a server."""

    charLimit: Annotated[int, Field(description="Characters of a text; -1 for no limit")]  # noqa: N815
    batchLimit: Annotated[int, Field(description="Texts of a list; -1 for no limit")]  # noqa: N815
    frontendTimeout: int  # noqa: N815
    apiKeys: bool  # noqa: N815
    keyRequired: bool  # noqa: N815
    suggestions: bool
    filesTranslation: bool  # noqa: N815
    supportedFilesFormat: list[str]  # noqa: N815
    language: SettingsLanguages


class FullTranslateRequest(BaseModel):
    """A text to translate, and how."""

    q: Annotated[_Text, Field(examples=["wake me up at nine"])]
    source: Annotated[_Code, Field(description="A language, or `auto`", examples=["en", "auto"])]
    target: Annotated[_Code, Field(examples=["de"])]
    experts: Annotated[
        Literal["kept", "all"] | None,
        Field(description="Those that the masks keep, or, where it is served, the full model"),
    ] = "kept"
    beams: Annotated[Annotated[int, Field(ge=1)] | None, Field(description="1 is greedy")] = 1
    alternatives: Annotated[int | None, Field(description="Further translations")] = 0
    format: Literal["text", "html"] | None = "text"
    api_key: str | None = None


class StackAtWork(Model):
    """The experts of a stack that a direction uses."""

    stack: str
    key: Annotated[str, Field(description="Language, direction, or `*`, whose mask it is")]
    layers: Annotated[list[int], Field(description="Numbers of the layers that have experts")]
    experts: Annotated[int, Field(description="Of each layer of the full model")]
    kept: Annotated[list[list[int]], Field(description="Experts of each layer that are used")]


class ExpertsAtWork(Model):
    """The experts that a direction uses."""

    choice: Literal["kept", "all"]
    kept: int
    of: int
    bytes: int
    stacks: list[StackAtWork]


class WorkDone(Model):
    """What a translation took."""

    sourceTokens: int  # noqa: N815
    targetTokens: int  # noqa: N815
    secondsWaited: Annotated[float, Field(description="For its turn and its experts")]  # noqa: N815
    secondsTranslating: float  # noqa: N815
    seconds: Annotated[float, Field(description="In all")]


class FullTranslated(Model):
    """A translation, and what went into it."""

    translatedText: str  # noqa: N815
    alternatives: list[str]
    detectedLanguage: Detection | None  # noqa: N815
    source: Annotated[str, Field(description="FLORES-200 code")]
    target: str
    experts: ExpertsAtWork
    work: WorkDone


class ConfiguredLanguage(Model):
    """A language that is served."""

    code: Annotated[str, Field(description="FLORES-200")]
    iso: Annotated[str, Field(description="What clients call it: ISO 639-1, where there is a code")]
    name: str
    source: bool
    target: bool


class ConfiguredSide(Model):
    """The experts of a language in a stack."""

    stack: str
    key: str
    kept: int
    of: int
    bytes: int
    resident: Annotated[bool, Field(description="In memory now, in any replica")]


class MemoryDivided(Model):
    """How memory is divided, in bytes; nothing where there is no bound."""

    fixed: int
    experts: int
    working: int | None
    total: int | None
    paged: Annotated[bool, Field(description="Whether experts come and go")]


class Configurations(Model):
    """What is served, and within which experts."""

    model: str
    version: str
    masks: Annotated[str | None, Field(description="Signature of the masks")]
    full: Annotated[bool, Field(description="Whether the full model may be asked for")]
    beams: Annotated[int, Field(description="The most that may be asked for")]
    languages: list[ConfiguredLanguage]
    sides: list[ConfiguredSide]
    memory: MemoryDivided


class Replica(Model):
    """A translator at work."""

    name: str
    resident: Annotated[list[str], Field(description="Stack and language whose experts are all in memory")]
    sentences: int
    waiting: int
    inFlight: int  # noqa: N815
    steps: int
    rows: int
    sourceTokens: int  # noqa: N815
    targetTokens: int  # noqa: N815
    swaps: int
    expertsMoved: int  # noqa: N815
    bytesMoved: int  # noqa: N815
    workingPeak: int  # noqa: N815
    memory: MemoryDivided


class Residency(Model):
    """Which experts are where."""

    replicas: list[Replica]


class Reloaded(Model):
    """Masks that are in use now."""

    masks: str | None


def request_body(model: type[BaseModel], *, form: bool = False) -> dict[str, Any]:
    """Return what the document says of the body of a request, which may come as a form too."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    kinds = ["application/json", *(_FORMS if form else ())]
    content = {kind: {"schema": schema} for kind in kinds}
    return {"requestBody": {"required": True, "content": content}, "security": [{}]}  # the key may be missing


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what the document says of answers that are none."""
    return {status: {"model": Error, "description": _ABOUT[status]} for status in statuses}


_ABOUT = {
    400: "Invalid request",
    403: "No API key, or a wrong one",
    408: "The request took too long to arrive",
    413: "The request is too large",
    429: "Too many requests; Retry-After says when to come again",
    500: "Internal error",
    503: "Too busy, too late or not ready; Retry-After says when to come again",
}
