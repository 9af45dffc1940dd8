"""Runs of an evaluation: what is computed, in which order, what is kept of earlier runs and what is never reused."""

import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from sacrebleu.metrics import BLEU, CHRF
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

from nllb_prune.corpus import ParallelText
from nllb_prune.errors import UsageError
from nllb_prune.evaluation import measuring as measuring_module
from nllb_prune.evaluation import work as work_module
from nllb_prune.evaluation import worker as worker_module
from nllb_prune.evaluation.detectors.flagging import flag
from nllb_prune.evaluation.detectors.repetition import Oscillation
from nllb_prune.evaluation.evaluate import Search, evaluate, evaluate_elsewhere
from nllb_prune.evaluation.fidelity.full_model import FullDirection
from nllb_prune.evaluation.measuring import SCORES_ONLY, Measuring
from nllb_prune.evaluation.results import RESULT_FILES
from nllb_prune.evaluation.scores.spbleu import find_spbleu
from nllb_prune.evaluation.scores.writing import bleu_tokenizer
from nllb_prune.evaluation.work import EvaluationItem, EvaluationWork
from nllb_prune.masks import MaskSet
from nllb_prune.model.loading import facts_of, load_model, load_spec
from nllb_prune.model.routing import clear_masks, set_masks
from nllb_prune.model.source import embedded_text, model_folder
from nllb_prune.worklist import one_by_one

PAIR = ("eng_Latn", "deu_Latn")
BACK = PAIR[::-1]
BOTH = (PAIR, BACK)


@pytest.fixture(autouse=True)
def fresh_versions():
    """Versions are looked up once a process; set up before what changes them, so cleared after it."""
    work_module._versions.cache_clear()
    yield
    work_module._versions.cache_clear()


@pytest.fixture
def translated(monkeypatch):
    """The directions that were translated so far, in order."""
    made, translations = [], worker_module.translations

    def counted(*arguments, source, target, **options):
        made.append((source, target))
        return translations(*arguments, source=source, target=target, **options)

    monkeypatch.setattr(worker_module, "translations", counted)
    return made


@pytest.fixture
def run(mini, mini_tokenizer, test_text, random_masks, tmp_path):
    """Evaluates two directions of three sentences, full and half, unless told otherwise."""

    def evaluated(directions=BOTH, configurations=None, *, model=mini, text=test_text, **options):
        configurations = configurations or {"full": None, "half": random_masks(32)}
        options = {"sentences": 3, "folder": tmp_path / "run", "measuring": SCORES_ONLY} | options
        return evaluate(model, mini_tokenizer, text, directions, configurations, **options)

    return evaluated


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.gz"))}


# what is computed


def test_results_are_of_their_configuration_and_direction(evaluation, directions, test_text):
    for direction in directions:
        for name, kept in (("full", 1.0), ("every", 1.0), ("half", 0.5), ("few", 0.125)):
            result = evaluation.result(name, direction)
            assert (result.configuration, result.source, result.target) == (name, *direction)
            assert (result.kept, result.sentences) == (kept, 24)
            assert len(result.ended) == len(result.mean_log_probabilities) == 24
    assert len(test_text.lines("eng_Latn")) > 24


def test_scores_are_those_of_sacrebleu_on_the_written_outputs(evaluation, directions, test_text):
    spm = SentencePieceProcessor(model_file=str(model_folder("mini") / "sentencepiece.bpe.model"))
    for source, target in directions:
        references = [list(test_text.lines(target)[:24])]
        pieces = [[" ".join(spm.encode(line, out_type=str)) for line in references[0]]]
        for name, result in evaluation.results((source, target)).items():
            outputs = list(result.hypotheses)
            chrf, bleu = CHRF(word_order=2), BLEU(tokenize=bleu_tokenizer(target))
            assert result.scores["chrf"].value == pytest.approx(chrf.corpus_score(outputs, references).score, abs=1e-9)
            assert result.scores["bleu"].value == pytest.approx(bleu.corpus_score(outputs, references).score, abs=1e-9)
            split = [" ".join(spm.encode(line, out_type=str)) for line in outputs]
            spbleu = BLEU(tokenize="none", force=True).corpus_score(split, pieces).score
            assert result.scores["spbleu"].value == pytest.approx(spbleu, abs=1e-9)
            assert result.scores["chrf"].signature == str(chrf.get_signature()), name
            assert result.scores["bleu"].signature == str(bleu.get_signature()), name


def test_every_expert_as_a_mask_is_the_full_model(evaluation, directions):
    for direction in directions:
        full, every = evaluation.result("full", direction), evaluation.result("every", direction)
        assert every.hypotheses == full.hypotheses
        assert every.weight_bytes == full.weight_bytes
        assert every.scores["chrf"].value == full.scores["chrf"].value
        np.testing.assert_array_equal(every.mean_log_probabilities, full.mean_log_probabilities)
        assert every.fidelity.values()["kl"] == pytest.approx(0.0, abs=1e-9)


def test_the_weights_of_a_mask_are_those_of_a_pruned_model(evaluation, random_masks):
    pruned = load_model("mini", masks=random_masks(8, seed=7), direction=PAIR)
    expected = sum(each.numel() * each.element_size() for each in pruned.parameters())
    assert evaluation.result("few", PAIR).weight_bytes == expected


def test_equal_inputs_give_equal_bytes(run, tmp_path, measuring):
    run(folder=tmp_path / "a", measuring=measuring)
    run(BOTH[::-1], folder=tmp_path / "b", measuring=measuring)
    assert list(contents(tmp_path / "a")) == [
        f"{name}/{direction}.jsonl.gz"
        for name in ("full", "half")
        for direction in ("deu_Latn-eng_Latn", "eng_Latn-deu_Latn")
    ]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_the_full_model_is_followed_once_a_direction(run, measuring, monkeypatch, random_masks):
    made, of = [], FullDirection.of

    def counted(*arguments, **options):
        made.append((options["source"], options["target"]))
        return of(*arguments, **options)

    monkeypatch.setattr(worker_module.FullDirection, "of", counted)
    found = run(configurations={"a": random_masks(32), "full": None, "b": random_masks(16)}, measuring=measuring)
    assert made == [PAIR, BACK]
    assert found.result("full", PAIR).fidelity is None
    assert found.result("a", PAIR).fidelity.values()["kl"] > 0


def test_fidelity_can_be_left_out(run):
    assert run().result("half", PAIR).fidelity is None


# in which order


def test_directions_of_one_target_follow_each_other(mini, test_text, random_masks, tmp_path):
    work = EvaluationWork(
        facts=facts_of(mini),
        text=test_text,
        directions=(("spa_Latn", "eng_Latn"), PAIR, ("deu_Latn", "eng_Latn"), ("tur_Latn", "deu_Latn")),
        configurations={"full": None, "half": random_masks(32)},
        search=Search(),
        measuring=SCORES_ONLY,
        folder=tmp_path,
    )
    assert [item.id for item in work.items()] == [
        "full/eng_Latn-deu_Latn",
        "half/eng_Latn-deu_Latn",
        "full/tur_Latn-deu_Latn",
        "half/tur_Latn-deu_Latn",
        "full/deu_Latn-eng_Latn",
        "half/deu_Latn-eng_Latn",
        "full/spa_Latn-eng_Latn",
        "half/spa_Latn-eng_Latn",
    ]


def test_the_work_is_done_in_this_order_and_a_direction_once(run, translated):
    seen = []

    def progress(items):
        seen.extend(item.id for item in items)
        return items

    found = run((BACK, PAIR, BACK), progress=progress)
    assert translated == [PAIR, PAIR, BACK, BACK]
    assert [name.split("/")[0] for name in seen] == ["full", "half"] * 2
    assert found.directions == (BACK, PAIR)


# what is kept


def test_finished_results_are_not_made_again(run, translated, tmp_path):
    first, told = run(), []
    before = contents(tmp_path / "run")
    translated.clear()
    assert run(told=told.append) == first
    assert run((BACK,), {"full": None}, told=told.append).result("full", BACK).sentences == 3
    assert (translated, told) == ([], [])
    assert contents(tmp_path / "run") == before


def test_a_run_that_ended_early_is_continued(run, translated, tmp_path, monkeypatch):
    run(folder=tmp_path / "whole")
    make = worker_module.Worker.__call__
    left = iter(range(3))

    def ends(self, item):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return make(self, item)

    monkeypatch.setattr(worker_module.Worker, "__call__", ends)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert len(contents(tmp_path / "run")) == 3
    monkeypatch.setattr(worker_module.Worker, "__call__", make)
    translated.clear()
    run()
    assert len(translated) == 1
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


@pytest.mark.parametrize("damage", [lambda c: c[:-5], lambda c: c[: len(c) // 2], lambda c: b"", lambda c: b"{}\n"])
def test_a_damaged_result_is_made_again(run, translated, tmp_path, damage):
    run()
    before = contents(tmp_path / "run")
    path = tmp_path / "run" / "half" / "eng_Latn-deu_Latn.jsonl.gz"
    path.write_bytes(damage(path.read_bytes()))
    translated.clear()
    told = []
    run(told=told.append)
    assert translated == [PAIR]
    assert told == ["1 result made again: cannot be read (1 file)"]
    assert contents(tmp_path / "run") == before


def test_force_makes_all_again(run, translated, tmp_path):
    run()
    before = contents(tmp_path / "run")
    path = tmp_path / "run" / "full" / "deu_Latn-eng_Latn.jsonl.gz"
    path.write_bytes(before["half/deu_Latn-eng_Latn.jsonl.gz"])  # right settings in the wrong place are not looked at
    translated.clear()
    run(force=True)
    assert len(translated) == 4
    assert contents(tmp_path / "run") == before


def tampered(path):
    """Put other outputs under the right settings."""
    result, header = RESULT_FILES.unpack(path.read_bytes())
    path.write_bytes(RESULT_FILES.pack(replace(result, hypotheses=("falsch",) * result.sentences), header))


def forced(run, folder, *, elsewhere, text, configurations):
    """Make all again, here or as workers elsewhere do, that load the model themselves."""
    if not elsewhere:
        return run(configurations=configurations, force=True)
    options = {"folder": folder, "measuring": SCORES_ONLY, "sentences": 3, "force": True}
    return evaluate_elsewhere(
        "mini",
        text,
        BOTH,
        configurations,
        make_mapper=lambda factory: one_by_one(pickle.loads(pickle.dumps(factory))()),
        **options,
    )


@pytest.mark.parametrize("elsewhere", [False, True])
def test_force_uses_no_outputs_of_earlier_runs(
    run, translated, tmp_path, test_text, random_masks, measuring, elsewhere
):
    configurations = {"full": None, "half": random_masks(32)}
    run(configurations=configurations)
    before = contents(tmp_path / "run")
    for path in sorted((tmp_path / "run").rglob("*.gz")):
        tampered(path)
    assert not set(contents(tmp_path / "run").values()) & set(before.values())
    other_measures = run(configurations=configurations, measuring=measuring)
    assert other_measures.result("half", PAIR).hypotheses == ("falsch",) * 3  # which are kept otherwise
    translated.clear()
    forced(run, tmp_path / "run", elsewhere=elsewhere, text=test_text, configurations=configurations)
    assert translated == [PAIR, PAIR, BACK, BACK]
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("finished", [0, 1, 3])
@pytest.mark.parametrize("beams", [1, 2])
def test_force_that_is_interrupted_leaves_the_old_files(run, translated, tmp_path, monkeypatch, finished, beams):
    run()
    run(search=Search(beams=beams), folder=tmp_path / "whole")
    before, new = contents(tmp_path / "run"), contents(tmp_path / "whole")
    make, left = worker_module.Worker.__call__, iter(range(finished))

    def ends(self, item):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return make(self, item)

    monkeypatch.setattr(worker_module.Worker, "__call__", ends)
    with pytest.raises(KeyboardInterrupt):
        run(search=Search(beams=beams), force=True)
    after = contents(tmp_path / "run")
    assert list(after) == list(before)
    order = [f"{name}/{direction}.jsonl.gz" for direction in map("-".join, BOTH) for name in ("full", "half")]
    assert after == before | {name: new[name] for name in order[:finished]}
    monkeypatch.setattr(worker_module.Worker, "__call__", make)
    translated.clear()
    run(search=Search(beams=beams))
    assert len(translated) == (0 if beams == 1 else 4 - finished)
    assert contents(tmp_path / "run") == new


# what is never reused


@pytest.fixture
def edited(tmp_path, text_of, test_text):
    """The text with one German line edited."""
    lines = {code: list(test_text.lines(code)[:3]) for code in (*PAIR, "spa_Latn")}
    lines["deu_Latn"][1] += " bitte"
    return text_of(tmp_path / "edited", **lines)


def changed_masks(masks, stack, expert):
    layers = {name: dict(each) for name, each in masks.masks.items()}
    first, *others = layers[stack]["*"]
    layers[stack]["*"] = (tuple(sorted({*first, expert} - {min(set(first) - {expert})})), *others)
    return replace(masks, masks=layers)


CHANGES = {
    "masks": (r"`masks` was .* and is .* \(1 file\)$", 1),
    "text": (r"`text` was .* and is .* \(2 files\)$", 2),
    "sentences": (r"`text` was .* and is .* \(2 files\)$", 2),
    "beams": (r"`beams` was 1 and is 2 \(2 files\)$", 2),
    "rows": (r"`in_flight` was \[\d+,\d+\] and is \[2,\d+\] \(2 files\)$", 2),
    "dtype": (r'`dtype` was "float32" and is "bfloat16" \(2 files\); `model` was ', 2),
    "version": (r'`versions` was .* and is .*"nllb-prune":"9.9".* \(2 files\)$', 2),
    "torch": (r'`versions` was .* and is .*"torch":"9.9".* \(2 files\)$', 2),
}


@pytest.mark.parametrize("what", CHANGES)
def test_results_of_other_settings_are_made_again(
    run, translated, what, mini, random_masks, edited, monkeypatch, tmp_path
):
    reason, results = CHANGES[what]
    run([PAIR])
    options = {}
    if what == "masks":
        masks = random_masks(32)
        spare = min(set(range(64)) - set(masks.masks["decoder"]["*"][0]))
        options = {"configurations": {"full": None, "half": changed_masks(masks, "decoder", spare)}}
    elif what == "text":
        options = {"text": edited}
    elif what == "sentences":
        options = {"sentences": 4}
    elif what in ("beams", "rows"):
        options = {"search": Search(**{what: 2})}
    elif what == "dtype":
        options = {"model": load_model("mini", dtype=torch.bfloat16)}
    elif what == "version":
        monkeypatch.setattr(work_module, "__version__", "9.9")
    else:
        monkeypatch.setattr(work_module, "version", lambda name: "9.9")
    work_module._versions.cache_clear()
    translated.clear()
    told = []
    run([PAIR], **options, told=told.append)
    assert translated == [PAIR] * results
    assert len(told) == 1
    assert re.search(rf"^{results} results? made again: {reason}", told[0])
    run([PAIR], **options, folder=tmp_path / "anew")
    assert contents(tmp_path / "run") == contents(tmp_path / "anew")


def test_a_line_matters_to_the_directions_that_have_it_alone(run, translated, edited, test_text, text_of, tmp_path):
    lines = {code: test_text.lines(code)[:3] for code in (*PAIR, "spa_Latn")}
    directions = (PAIR, ("spa_Latn", "eng_Latn"), ("deu_Latn", "spa_Latn"))
    run(directions, {"full": None}, text=text_of(tmp_path / "as-it-was", **lines))
    translated.clear()
    run(directions, {"full": None}, text=edited)
    assert translated == [PAIR, ("deu_Latn", "spa_Latn")]


def test_more_languages_or_lines_in_the_files_do_not_matter(run, translated, test_text, text_of, tmp_path):
    run()
    translated.clear()
    run(text=text_of(tmp_path / "few", **{code: test_text.lines(code)[:7] for code in PAIR}))
    assert translated == []


def finer(measuring):
    """Oscillation by bigrams: other values under the same name."""
    return replace(
        measuring,
        detectors=tuple(
            replace(d, measure=Oscillation(order=2)) if d.name == "oscillation" else d for d in measuring.detectors
        ),
    )


MEASURES = {
    "detector": r'`detector oscillation` was "oscillation\|n:4[^"]*" and is "oscillation\|n:2[^"]*" \(2 files\)$',
    "spbleu": r'`spbleu` was "tok:spm-[^"]*" and is "tok:spm-[^"]*" \(2 files\)$',
    "fidelity": r"`fidelity` was true and is false \(2 files\)$",
    "sacrebleu": r'.*`sacrebleu` was "[^"]*" and is "9\.9\.9" \(2 files\)$',
}


@pytest.mark.parametrize("what", MEASURES)
def test_other_measures_keep_the_translations(run, translated, what, measuring, monkeypatch, tmp_path):
    run([PAIR], measuring=measuring)
    reason = MEASURES[what]
    new = {
        "detector": finer(measuring),
        "spbleu": replace(measuring, spbleu=find_spbleu(other_pieces(tmp_path))),
        "fidelity": replace(measuring, fidelity=False),
        "sacrebleu": measuring,
    }[what]
    if what == "sacrebleu":
        monkeypatch.setattr(measuring_module.sacrebleu, "__version__", "9.9.9")
    before = contents(tmp_path / "run")
    translated.clear()
    told = []
    run([PAIR], measuring=new, told=told.append)
    assert translated == []
    assert len(told) == 1
    assert re.search(rf"^2 results made again: {reason}", told[0])
    assert not set(contents(tmp_path / "run").values()) & set(before.values())
    run([PAIR], measuring=new, folder=tmp_path / "anew")
    assert contents(tmp_path / "run") == contents(tmp_path / "anew")


def other_pieces(folder):
    """Another sentencepiece model: the first 1,000 pieces of that of `mini`."""
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((model_folder("mini") / "sentencepiece.bpe.model").read_bytes())
    del model.pieces[1000:]
    path = folder / "other.model"
    path.write_bytes(model.SerializeToString())
    return path


def test_translations_are_made_again_where_measures_and_search_changed(run, translated, measuring):
    run(measuring=measuring)
    translated.clear()
    run(measuring=finer(measuring), search=Search(beams=2))
    assert len(translated) == 4


def test_a_threshold_changes_flags_and_no_result(run, translated, measuring, test_text, tmp_path):
    result = run(measuring=measuring).result("half", PAIR)
    before = contents(tmp_path / "run")
    strict = replace(measuring, detectors=tuple(replace(each, threshold=-9.0) for each in measuring.detectors))
    translated.clear()
    told = []
    found = run(measuring=strict, told=told.append).result("half", PAIR)
    assert (translated, told) == ([], [])
    assert contents(tmp_path / "run") == before
    flagged = [
        flag(each, m.detectors, baseline=each, text=test_text).flagged["oscillation"]
        for each, m in ((result, measuring), (found, strict))
    ]
    assert flagged[0].sum() < flagged[1].sum() == 3


# with workers that load the model themselves


def test_workers_elsewhere_give_the_same_files(run, tmp_path, measuring, random_masks):
    run(measuring=measuring)
    factories = []

    def make_mapper(factory):
        factories.append(factory)
        return one_by_one(pickle.loads(pickle.dumps(factory))())

    found = evaluate_elsewhere(
        "mini",
        ParallelText.open(embedded_text(), split="test"),
        BOTH,
        {"full": None, "half": random_masks(32)},
        make_mapper=make_mapper,
        folder=tmp_path / "elsewhere",
        measuring=measuring,
        sentences=3,
    )
    assert len(factories) == 1
    assert contents(tmp_path / "elsewhere") == contents(tmp_path / "run")
    assert found.model == "mini"


def test_workers_elsewhere_use_the_dtype_asked_for(test_text, tmp_path):
    made = []

    def make_mapper(factory):
        worker = factory()
        made.append(worker.model)
        return one_by_one(worker)

    options = {"folder": tmp_path, "measuring": SCORES_ONLY, "sentences": 1, "dtype": torch.bfloat16}
    found = evaluate_elsewhere("mini", test_text, [PAIR], {"full": None}, make_mapper=make_mapper, **options)
    assert made[0].lm_head.weight.dtype == torch.bfloat16
    parameters = sum(each.numel() for each in made[0].parameters())
    assert 2 * parameters <= found.result("full", PAIR).weight_bytes < 4 * parameters


# what is refused


def test_pruned_and_masked_models_are_refused(run, mini, random_masks, tmp_path):
    masks = random_masks(32)
    with pytest.raises(UsageError, match="`model` must be the full one, but is pruned or has masks set"):
        run(model=load_model("mini", masks=masks, direction=PAIR))
    try:
        set_masks(mini, masks, PAIR)
        with pytest.raises(UsageError, match="`model` must be the full one"):
            run()
    finally:
        clear_masks(mini)
    assert not (tmp_path / "run").exists()


def test_a_language_without_a_mask_is_refused_before_the_first_translation(run, translated, random_masks):
    masks = random_masks(32)
    layers = {name: {"eng_Latn": each["*"]} for name, each in masks.masks.items()}
    some = replace(masks, granularity="language", masks=layers)
    with pytest.raises(UsageError, match="must have a mask"):
        run(configurations={"full": None, "some": some})
    assert translated == []


def test_masks_of_another_model_are_refused(run, tmp_path):
    spec = load_spec("tests/reference/tiny")
    other = MaskSet(
        model_name="tiny",
        fingerprint=spec.fingerprint,
        stacks=spec.stacks,
        granularity="global",
        masks={stack.name: {"*": ((0, 1),) * len(stack.layers)} for stack in spec.stacks},
    )
    with pytest.raises(UsageError, match="must belong to the model"):
        run(configurations={"other": other})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "tab\t", "-option", "summary.json", "a.json"])
def test_names_that_are_no_folders_are_refused(run, name):
    with pytest.raises(UsageError, match=r"`configurations` must be named with letters, .* but one is "):
        run(configurations={name: None})


def test_no_directions_and_other_languages_are_refused(run, translated):
    with pytest.raises(UsageError, match="`directions` must name one direction or more, but are none"):
        run(())
    with pytest.raises(UsageError, match=r"`directions` must be of languages of the text, .*, but one has fra_Latn"):
        run((PAIR, ("eng_Latn", "fra_Latn")))
    assert translated == []


def test_a_name_may_hold_json_elsewhere(run, tmp_path):
    run([PAIR], {"json": None, "a.json.b": None})
    assert list(contents(tmp_path / "run")) == [f"{name}/{'-'.join(PAIR)}.jsonl.gz" for name in ("a.json.b", "json")]


def test_masks_are_hashed_once_however_many_directions(mini, test_text, random_masks, tmp_path, monkeypatch):
    made, signature = [], MaskSet.signature.fget
    monkeypatch.setattr(MaskSet, "signature", property(lambda masks: made.append(masks) or signature(masks)))
    codes = test_text.languages
    configurations = {"full": None, "half": random_masks(32), "few": random_masks(8)}
    work = EvaluationWork(
        facts=facts_of(mini),
        text=test_text,
        directions=tuple((a, b) for a in codes for b in codes if a != b),
        configurations=configurations,
        search=Search(),
        measuring=SCORES_ONLY,
        folder=tmp_path,
    )
    found = {(item.configuration, work.translation_settings(item)["masks"]) for item in work.items()}
    assert len(work.items()) == 270
    assert made == [configurations["half"], configurations["few"]]
    assert found == {(name, masks and signature(masks)) for name, masks in configurations.items()}


def test_an_item_names_its_file():
    item = EvaluationItem("half", *PAIR)
    assert (item.id, item.direction) == ("half/eng_Latn-deu_Latn", PAIR)
    assert Measuring(detectors=()).settings(PAIR)["spbleu"] is None
