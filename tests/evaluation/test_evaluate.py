"""The work list of an evaluation: resumed, refused under other settings, and never on a model already pruned."""

import pytest

from nllb_prune.corpus import ParallelText
from nllb_prune.errors import UsageError
from nllb_prune.evaluation import evaluate as module
from nllb_prune.evaluation.evaluate import evaluate
from nllb_prune.evaluation.summary import Summary, summarise
from nllb_prune.masks import MaskSet
from nllb_prune.model.loading import load_model, load_spec
from nllb_prune.model.routing import clear_masks, set_masks
from nllb_prune.model.source import embedded_text, load_tokenizer

DIRECTIONS = (("eng_Latn", "deu_Latn"), ("deu_Latn", "eng_Latn"))


@pytest.fixture(scope="module")
def model():
    return load_model("mini")


@pytest.fixture(scope="module")
def masks():
    spec = load_spec("mini")
    half = tuple(range(0, 64, 2))
    kept = {stack.name: {"*": (half,) * len(stack.layers)} for stack in spec.stacks}
    return MaskSet(
        model_name="mini", fingerprint=spec.fingerprint, stacks=spec.stacks, granularity="global", masks=kept
    )


@pytest.fixture
def run(model, masks, tmp_path):
    text, tokenizer = ParallelText.open(embedded_text(), split="test"), load_tokenizer("mini")

    def evaluated(directions=DIRECTIONS, configurations=None, *, model=model, **options):
        configurations = {"full": None, "half": masks} if configurations is None else configurations
        options = {"sentences": 3, "folder": tmp_path} | options
        return evaluate(model, tokenizer, text, directions, configurations, **options)

    return evaluated


def test_results_and_summary(run, tmp_path):
    results = run()
    assert [(r.configuration, r.direction, r.kept) for r in results] == [
        (name, "-".join(direction), kept) for name, kept in (("full", 1.0), ("half", 0.5)) for direction in DIRECTIONS
    ]
    assert all(len(r.hypotheses) == r.scores.sentences == 3 for r in results)
    summary = summarise(results)
    summary.save(tmp_path / "summary.json")
    assert Summary.load(tmp_path / "summary.json").to_json() == summary.to_json()


def test_finished_directions_are_not_made_again(run, monkeypatch):
    first = [r.to_json() for r in run(DIRECTIONS)]
    monkeypatch.setattr(module, "translate", None)
    assert [r.to_json() for r in run(DIRECTIONS)] == first
    assert [r.to_json() for r in run(DIRECTIONS[::-1], {"full": None})] == first[1::-1]


@pytest.mark.parametrize("options", [{"beams": 2}, {"sentences": 2}])
def test_other_settings_are_refused(run, options):
    run(configurations={"full": None})
    with pytest.raises(UsageError, match="must be made with the settings of this run"):
        run(configurations={"full": None}, **options)
    assert run(configurations={"full": None}, **options, restart=True)


def test_other_masks_under_the_same_name_are_refused(run, masks):
    run(configurations={"small": None})
    with pytest.raises(UsageError, match="`masks` was null"):
        run(configurations={"small": masks})


def test_pruned_and_masked_models_are_refused(run, model, masks, tmp_path):
    with pytest.raises(UsageError, match="must be the full one, but is pruned or has masks set"):
        run(model=load_model("mini", masks=masks, direction=DIRECTIONS[0]))
    try:
        set_masks(model, masks, DIRECTIONS[0])
        with pytest.raises(UsageError, match="must be the full one"):
            run()
    finally:
        clear_masks(model)
    assert list(tmp_path.iterdir()) == []
