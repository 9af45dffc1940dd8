"""The 202 languages of NLLB-200 under all their names, and named sets of them with pruning settings."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, Literal

from nllb_prune.errors import UsageError

__all__ = [
    "Direction",
    "Language",
    "LanguageSet",
    "PruningSettings",
    "all_languages",
    "confusable_group",
    "english_and_ring",
    "find_language",
    "language",
    "language_set",
    "language_set_names",
    "parse_directions",
    "split_direction",
]

Resource = Literal["high", "low", "very_low"]
Direction = tuple[str, str]
"""Codes of the source and the target language."""


@dataclass(frozen=True, slots=True)
class Language:
    """A language in one script, as NLLB-200 tells them apart."""

    code: str
    """FLORES-200 code; the one name used in corpora, statistics and masks."""
    name: str
    """English name."""
    script: str
    """ISO 15924 code of the script."""
    iso639_1: str | None
    """Two-letter code; a code that covers several languages belongs to the standard or most spoken one only."""
    token: str
    """The language token of the NLLB tokenizer."""
    flores_plus: str | None
    """Code of FLORES+ where it differs from `code`."""
    resource: Resource | None
    """Published resource class (by lines of primary bitext), known for 53 languages."""
    aliases: tuple[str, ...]
    """Other accepted names."""

    def __str__(self) -> str:
        """Return the code and the name."""
        return f"{self.code} ({self.name})"


@dataclass(frozen=True, slots=True)
class PruningSettings:
    """How a language set is pruned unless other settings are given."""

    criterion: str
    """Name of the score that ranks experts."""
    kept: float
    """Fraction of all experts that stay."""
    ratio: str
    """Kept encoder experts to kept decoder experts, such as `3:1`."""
    languages: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Experts of each layer by language and stack, for languages that keep another number."""


@dataclass(frozen=True, slots=True)
class LanguageSet:
    """Languages that are studied together, and their default pruning settings."""

    name: str
    languages: tuple[Language, ...]
    pruning: PruningSettings

    @property
    def codes(self) -> tuple[str, ...]:
        """FLORES-200 codes in the order of the set."""
        return tuple(member.code for member in self.languages)


@cache
def all_languages() -> tuple[Language, ...]:
    """Return the 202 languages in the order of their codes."""
    return tuple(_language(code, entry) for code, entry in _toml("languages.toml").items())


def find_language(name: str) -> Language | None:
    """Return the language of that name as `language` does, or None."""
    return _index().get(_normal(name))


def language(name: str) -> Language:
    """Return the language of a FLORES-200 or FLORES+ code, NLLB token, ISO 639 code or alias.

    Case and the choice of `-` or `_` do not matter. A bare three-letter ISO 639-3 code is accepted where NLLB-200 has
    that language in one script only.

    Raises:
        UsageError: if no language has that name; the message lists close ones.
    """
    found = find_language(name)
    if found is None:
        raise UsageError(
            f"`language` must be a FLORES-200 code such as eng_Latn or a known alias, but is `{name}` instead. "
            + _advice(name)
        )
    return found


@cache
def language_set_names() -> tuple[str, ...]:
    """Return the names of the language sets that come with the toolkit."""
    entries = (entry.name for entry in (_folder() / "sets").iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in entries if name.endswith(".toml")))


@cache
def language_set(name: str) -> LanguageSet:
    """Return a set that comes with the toolkit.

    Raises:
        UsageError: if there is no such set.
    """
    if name not in language_set_names():
        known = ", ".join(language_set_names())
        raise UsageError(f"`language_set` must be one of {known}, but is `{name}` instead.")
    content = _toml(f"sets/{name}.toml")
    members = all_languages() if content["languages"] == "all" else tuple(map(language, content["languages"]))
    pruning = PruningSettings(**content["pruning"])
    if unknown := [code for code in pruning.languages if code not in {member.code for member in members}]:
        raise UsageError(f"`pruning.languages` must be of the set {name}, but has {', '.join(unknown)} too.")
    return LanguageSet(name, members, pruning)


def confusable_group(code: str) -> tuple[str, ...]:
    """Return the FLORES-200 codes that language identification cannot tell from `code`, itself among them."""
    return _confusable().get(code, (code,))


def parse_directions(text: str, languages: Iterable[str]) -> tuple[Direction, ...]:
    """Read comma-separated directions, such as `eng_Latn-deu_Latn,*-eng_Latn`, into (source, target) pairs.

    A side is a language under any of its names or `*`; `all` stands for `*-*`. Pairs come in the order of the text,
    those of a `*` in the order of `languages`, each once; `*` never pairs a language with itself.

    Raises:
        UsageError: if a part is no direction, or names a language outside `languages`.
    """
    codes = tuple(dict.fromkeys(languages))
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UsageError("`directions` must name at least one direction, but is empty instead. Try `all`.")
    pairs = (pair for part in parts for pair in _expand("*-*" if part == "all" else part, codes))
    return tuple(dict.fromkeys(pairs))


def _expand(part: str, codes: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of one direction with or without `*`."""
    source, target = (_members(side, codes) for side in _sides(part))
    pairs = [(a, b) for a in source for b in target if a != b]
    if not pairs:
        raise UsageError(f"`directions` must join two different languages, but has `{part}` instead.")
    return pairs


def _sides(part: str) -> tuple[str, str]:
    """Split at the hyphen that leaves a name on both sides, as aliases such as `zh-Hans` have hyphens too."""
    words = part.split("-")
    splits = [("-".join(words[:i]), "-".join(words[i:])) for i in range(1, len(words))]
    if not splits:
        raise UsageError(
            f"`directions` must be `SOURCE-TARGET` pairs, `*` for any language, or `all`, but has `{part}` instead."
        )
    return next((sides for sides in splits if all(map(_is_name, sides))), splits[0])


def _is_name(side: str) -> bool:
    return side == "*" or find_language(side) is not None


def _members(side: str, codes: Sequence[str]) -> Sequence[str]:
    """Return the codes that a side stands for."""
    if side == "*":
        return codes
    code = side if side in codes else language(side).code
    if code not in codes:
        raise UsageError(f"`directions` must use the languages {', '.join(codes)}, but has `{side}` instead.")
    return (code,)


def _language(code: str, entry: dict[str, Any]) -> Language:
    """Fill in what a line of languages.toml leaves out because it follows from the code."""
    return Language(
        code=code,
        name=entry["name"],
        script=code.partition("_")[2],
        iso639_1=entry.get("iso639_1"),
        token=entry.get("token", code),
        flores_plus=entry.get("flores_plus"),
        resource=entry.get("resource"),
        aliases=tuple(entry.get("aliases", ())),
    )


@cache
def _index() -> dict[str, Language]:
    """Return every accepted name, normalised, with its language."""
    scripts = Counter(_iso639_3(each) for each in all_languages())
    index = {_iso639_3(each): each for each in all_languages() if scripts[_iso639_3(each)] == 1}
    for each in all_languages():
        names = (each.code, each.token, each.flores_plus, each.iso639_1, *each.aliases)
        index.update({_normal(name): each for name in names if name})
    return index


def _iso639_3(member: Language) -> str:
    return member.code.partition("_")[0]


def _normal(name: str) -> str:
    return name.strip().casefold().replace("_", "-")


def _advice(name: str) -> str:
    """Name the languages that were probably meant, or where to look."""
    wanted = _normal(name)
    english = {each.name.casefold(): each for each in all_languages()}
    candidates = {**english, **_index()}
    keys = [key for key in candidates if wanted and key.startswith(wanted)] + get_close_matches(wanted, candidates)
    close = list(dict.fromkeys(str(candidates[key]) for key in keys))[:4]
    return f"Did you mean {', '.join(close)}?" if close else "`lang_configs/languages.toml` lists all 202 languages."


@cache
def _confusable() -> dict[str, tuple[str, ...]]:
    """Return the group of every language that is in one."""
    groups = [tuple(members) for members in _toml("confusable.toml")["groups"].values()]
    return {code: members for members in groups for code in members}


@cache
def _folder() -> Traversable:
    """Return `lang_configs`: inside the package when installed, beside it in a checkout."""
    package = files("nllb_prune")
    installed = package / "lang_configs"
    return installed if installed.is_dir() else package / ".." / "lang_configs"


def _toml(path: str) -> dict[str, Any]:
    return tomllib.loads((_folder() / path).read_text(encoding="utf-8"))


def split_direction(direction: str) -> tuple[str, str]:
    """Return the source and the target of `src-tgt`."""
    source, dash, target = direction.partition("-")
    if not (source and dash and target) or "-" in target:
        raise UsageError(f"`direction` must be like eng_Latn-deu_Latn, but is {direction} instead.")
    return source, target


def english_and_ring(codes: Sequence[str], *, others: int) -> tuple[Direction, ...]:
    """Return all directions into and out of English and so many others, in rings through the other languages."""
    rest = [code for code in codes if code != "eng_Latn"]
    english = [pair for code in rest for pair in (("eng_Latn", code), (code, "eng_Latn"))]
    ring = [(code, rest[(n + step) % len(rest)]) for step in range(1, len(rest)) for n, code in enumerate(rest)]
    return tuple(english + ring[:others])
