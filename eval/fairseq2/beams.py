"""Beam search: fairseq2's own, as its users and as the verbs run it, against ours and our model's scores.

fairseq2 gives a hypothesis the sum of the log-probabilities of the language token, the words and `</s>`, over their
number, and stops at as many finished hypotheses as beams.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from fairseq2.data.tokenizers import load_tokenizer as load_their_tokenizer
from fairseq2.generation.beam_search import BeamSearchSeq2SeqGenerator
from fairseq2.generation.text import TextTranslator
from fairseq2.models import load_model as load_their_model

from eval.fairseq2.common import ASSET, DIRECTIONS, TEST, forced, sentences_of, texts_by_direction
from nllb_prune.evaluation.scores.metrics import score
from nllb_prune.evaluation.significance.randomisation import paired_randomisation_over_directions
from nllb_prune.generation.decode import decode
from nllb_prune.generation.loop import Sentence
from nllb_prune.generation.search import Hypothesis, SearchSettings
from nllb_prune.languages import Direction
from nllb_prune.model.blocks import blocks_of
from nllb_prune.model.loading import load_model
from nllb_prune.model.source import load_tokenizer
from nllb_prune.on_fairseq2 import loading
from nllb_prune.on_fairseq2.vocabulary import ids_for_transformers

BEAMS = 4
Found = Mapping[Any, list[Hypothesis]]
"""By source, target and number of the line."""


def study(*, sentences: int) -> dict[str, Any]:
    """Compare searches on so many sentences of each direction."""
    ours, theirs, tokenizer = load_model("mini"), loading.load_model("mini"), load_tokenizer("mini")
    wanted = sentences_of(tokenizer, DIRECTIONS, sentences)
    told: dict[str, Any] = {"beams": BEAMS, "directions": len(DIRECTIONS), "sentences": len(wanted)}
    usual = SearchSettings(beams=BEAMS, alternatives=BEAMS)
    early = SearchSettings(beams=BEAMS, alternatives=BEAMS, early_stopping=True)
    searches: dict[str, Found] = {}
    searches["ours"] = decode(ours, blocks_of(ours), wanted, usual)
    searches["ours, early stopping"] = decode(ours, blocks_of(ours), wanted, early)
    searches["fairseq2, by the verb"] = decode(theirs, None, wanted, usual)
    searches["fairseq2"] = direct(wanted, count=sentences)
    searches["fairseq2, language token left out"] = direct(wanted, count=sentences, leave_language_out=True)
    searches["ours, greedy"] = decode(ours, blocks_of(ours), wanted, SearchSettings())
    told["language token"] = _of_language(ours, wanted)
    told["scores"] = _against_ours(ours, wanted, searches["fairseq2"])
    told["agreement"] = _agreement(searches, told["language token"].pop("by direction"), wanted)
    told["where they differ"] = _where_they_differ(ours, wanted, searches)
    told["quality"] = _quality(tokenizer, searches)
    return told


def direct(wanted: Sequence[Sentence], *, count: int, leave_language_out: bool = False) -> Found:
    """Translate as a user of fairseq2 does: its `load_model`, its tokenizer, its generator, its `TextTranslator`."""
    model = load_their_model(ASSET, device=torch.device("cpu"), dtype=torch.float32)
    tokenizer, found = load_their_tokenizer(ASSET), {}
    generator = BeamSearchSeq2SeqGenerator(
        model, tokenizer.vocab_info, beam_size=BEAMS, max_gen_len=(2, 16), echo_prompt=True
    )
    if leave_language_out:
        generator.register_step_hook(_forget_the_prompt)
    for source, target in DIRECTIONS:
        translator = TextTranslator(generator, tokenizer, source_lang=source, target_lang=target)
        _, output = translator.batch_translate(TEST.lines(source)[:count])
        for n, hypotheses in enumerate(output.hypotheses):
            found[source, target, n] = [_hypothesis(each) for each in hypotheses]
    assert found.keys() == {each.key for each in wanted}
    return found


def _forget_the_prompt(_prompts: Any, _sequences: Any, step_scores: torch.Tensor, prefill: bool) -> None:
    """Set what the language token adds to every score to nothing."""
    if prefill:
        step_scores.zero_()


def _hypothesis(found: Any) -> Hypothesis:
    """Return what fairseq2 found, with the words between the language token and `</s>`, which all come to."""
    words = ids_for_transformers(found.seq[2:-1]).tolist()
    return Hypothesis(tuple(words), float(found.step_scores[2:].double().sum()), True, float(found.score))


def _of_language(model: Any, wanted: Sequence[Sentence]) -> dict[str, Any]:
    """Return the log-probability that our model gives the language token, of each sentence and over all."""
    nothing = Hypothesis((), 0.0, False, 0.0)
    values = [float(each[0]) for each in forced(model, [(sentence, nothing) for sentence in wanted])]
    spread = {"mean": float(np.mean(values)), "least": min(values), "most": max(values)}
    return {**spread, "by direction": dict(zip((sentence.key for sentence in wanted), values, strict=True))}


def _against_ours(model: Any, wanted: Sequence[Sentence], found: Found) -> dict[str, Any]:
    """Return how far scores of fairseq2 are from the mean of our log-probabilities of the same tokens."""
    pairs = [(sentence, each) for sentence in wanted for each in found[sentence.key]]
    gaps = [
        abs(each.score - float(values.mean())) for (_, each), values in zip(pairs, forced(model, pairs), strict=True)
    ]
    return {"hypotheses": len(pairs), "largest difference": max(gaps)}


def _agreement(
    searches: Mapping[str, Found], language: Mapping[Any, float], wanted: Sequence[Sentence]
) -> dict[str, int]:
    """Return for how many sentences two searches find the same best hypothesis."""
    keys = [each.key for each in wanted]

    def same(one: Mapping[Any, Hypothesis], two: Mapping[Any, Hypothesis]) -> int:
        return sum(one[key].tokens == two[key].tokens for key in keys)

    best = {name: {key: found[key][0] for key in keys} for name, found in searches.items()}
    ranked = {
        key: max(found, key=lambda each: (each.log_probability + language[key]) / (len(each.tokens) + 2))
        for key, found in searches["ours, early stopping"].items()
    }
    return {
        "the verb, and fairseq2": same(best["fairseq2, by the verb"], best["fairseq2"]),
        "ours, and fairseq2": same(best["ours"], best["fairseq2"]),
        "ours with early stopping, and fairseq2": same(best["ours, early stopping"], best["fairseq2"]),
        "that, ranked with the language token, and fairseq2": same(ranked, best["fairseq2"]),
        "ours with early stopping, and fairseq2 without the language token": same(
            best["ours, early stopping"], best["fairseq2, language token left out"]
        ),
        "ours, and fairseq2 without the language token": same(best["ours"], best["fairseq2, language token left out"]),
        "ours, and ours with early stopping": same(best["ours"], best["ours, early stopping"]),
    }


def _where_they_differ(model: Any, wanted: Sequence[Sentence], searches: Mapping[str, Found]) -> dict[str, Any]:
    """Return the mean scores of both best hypotheses by either rule, and their lengths."""
    ours, theirs = searches["ours"], searches["fairseq2"]
    some = [each for each in wanted if ours[each.key][0].tokens != theirs[each.key][0].tokens]

    def values(found: Found) -> dict[str, float]:
        forced_values = list(forced(model, [(each, found[each.key][0]) for each in some]))
        return {
            "our score": float(np.mean([float(each[1:].sum()) / len(each) for each in forced_values])),
            "their score": float(np.mean([float(each.mean()) for each in forced_values])),
            "log-probability": float(np.mean([float(each[1:].sum()) for each in forced_values])),
            "tokens": float(np.mean([len(found[each.key][0].tokens) for each in some])),
        }

    longer = sum(len(theirs[each.key][0].tokens) > len(ours[each.key][0].tokens) for each in some)
    return {"sentences": len(some), "theirs is longer": longer, "ours": values(ours), "theirs": values(theirs)}


def _quality(tokenizer: Any, searches: Mapping[str, Found]) -> dict[str, dict[str, float]]:
    """Return chrF++ and lengths, and how sure it is that a search differs from ours."""
    texts = {
        name: texts_by_direction(tokenizer, {key: each[0] for key, each in found.items()})
        for name, found in searches.items()
        if name != "fairseq2, by the verb"
    }
    scored = {name: {each: _chrf(each, found[each]) for each in found} for name, found in texts.items()}
    statistics = {name: {"-".join(each): found.statistics for each, found in by.items()} for name, by in scored.items()}
    quality = {}
    for name, by_direction in scored.items():
        tested = paired_randomisation_over_directions(statistics[name], statistics["ours"], metric="chrf")
        quality[name] = {
            "chrF++": _mean(found.value for found in by_direction.values()),
            "against ours": tested.difference,
            "p": tested.p_value,
            "length": _mean(_length(each, texts[name][each]) for each in by_direction),
        }
    return quality


def _chrf(direction: Direction, hypotheses: Sequence[str]) -> Any:
    return score(hypotheses, TEST.lines(direction[1])[: len(hypotheses)], target=direction[1])["chrf"]


def _length(direction: Direction, hypotheses: Sequence[str]) -> float:
    """Return the characters of outputs over those of the references."""
    return sum(map(len, hypotheses)) / sum(map(len, TEST.lines(direction[1])[: len(hypotheses)]))


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
