import random
from functools import partial

import pytest

from nllb_prune import load_model, load_spec, load_tokenizer
from nllb_prune.corpus import ParallelText
from nllb_prune.exporting.export import export
from nllb_prune.exporting.settings import ExportSettings
from nllb_prune.masks import MaskSet
from tests.on_fairseq2.sides import EMBEDDED_LANGUAGES, Pairs, lines


@pytest.fixture(scope="session")
def mini():
    return load_model("mini")


@pytest.fixture(scope="session")
def mini_dense():
    return load_model("mini-dense")


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer("mini")


@pytest.fixture(scope="session")
def pairs(tokenizer):
    """Twenty sentences of different lengths, English into German."""
    return Pairs.of(tokenizer)


@pytest.fixture(scope="session")
def masks():
    """Of `mini`, another number of experts in every layer and side of each language."""
    spec, drawn = load_spec("mini"), random.Random(7)

    def mask(stack):
        return [sorted(drawn.sample(range(stack.experts), drawn.randint(6, 30))) for _ in stack.layers]

    return MaskSet(
        model_name="mini",
        fingerprint=spec.fingerprint,
        stacks=spec.stacks,
        top_k=spec.top_k,
        granularity="language",
        masks={stack.name: {code: mask(stack) for code in EMBEDDED_LANGUAGES} for stack in spec.stacks},
        plan={"criterion": "random"},
    )


@pytest.fixture(scope="session")
def exports(masks, tmp_path_factory):
    """Makes pruned checkpoints of `mini`, each once: `exports([("eng_Latn", "deu_Latn")], experts="int8")`.

    With `trimmed` only the pieces of the dev text of the languages are kept; all else are fields of `ExportSettings`.
    """
    folder, made = tmp_path_factory.mktemp("exports"), {}

    def make(directions=(("eng_Latn", "deu_Latn"),), *, trimmed=False, **settings):
        key = (tuple(directions), trimmed, *sorted(settings.items()))
        if key not in made:
            made[key] = folder / f"pruned-{len(made)}"
            codes = {code for direction in directions for code in direction}
            text = ParallelText({code: partial(lines, code) for code in codes}) if trimmed else None
            export(
                "mini",
                made[key],
                masks=masks,
                directions=list(directions),
                settings=ExportSettings(**settings),
                vocabulary=text,
            )
        return made[key]

    return make
