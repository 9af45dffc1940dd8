"""Calibration runs: what is resumed, sharded or merged has the bytes of one run; other settings are refused."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from nllb_prune.calibration import teacher_forced
from nllb_prune.calibration.statistics import CLASSES, ExpertStatistics
from nllb_prune.calibration.teacher_forced import calibrate
from nllb_prune.corpus import ParallelText
from nllb_prune.errors import UsageError
from nllb_prune.masks import MaskSet
from nllb_prune.model.loading import load_model
from nllb_prune.model.routing import clear_masks, routing_of, set_masks

TINY = Path(__file__).parent.parent / "reference" / "tiny"
DIRECTIONS = tuple(permutations(("eng_Latn", "deu_Latn", "fra_Latn"), 2))


@pytest.fixture
def run(tiny, tokenizer, text, tmp_path):
    def calibrated(directions=DIRECTIONS, *, folder="work", model=tiny, text=text, **options):
        return calibrate(model, tokenizer, text, directions, folder=tmp_path / folder, **options)

    return calibrated


@pytest.fixture(scope="module")
def whole(tiny, tokenizer, text, tmp_path_factory):
    return calibrate(tiny, tokenizer, text, DIRECTIONS, folder=tmp_path_factory.mktemp("whole"))


def global_masks(spec):
    return MaskSet(
        model_name="tiny",
        fingerprint=spec.fingerprint,
        stacks=spec.stacks,
        granularity="global",
        masks={stack.name: {"*": ((0, 1), (2, 3))} for stack in spec.stacks},
    )


def test_what_is_in_it(whole, text):
    assert whole.keys("encoder") == whole.keys("decoder") == ("deu_Latn", "eng_Latn", "fra_Latn")
    assert whole.items == tuple(sorted(f"{source}-{target}" for source, target in DIRECTIONS))
    assert whole.granularity == "language"
    assert (whole.signature["mode"], whole.signature["sentences"]) == ("references", 12)
    for code in whole.keys("encoder"):
        words = sum(len(line.split()) for line in text.lines(code))
        for stack in ("encoder", "decoder"):  # each language is the source of two directions and the target of two
            tokens = whole.table(stack, code)["tokens"]
            assert tokens[0] == 2 * (words + 2 * 12)
            np.testing.assert_allclose(whole.table(stack, code)["p_all"][0].sum(-1), tokens[0], rtol=1e-5)
            assert tokens[CLASSES[stack].index("end")] == 2 * 12


def test_again_gives_the_same_bytes(run, whole):
    assert run().to_bytes() == whole.to_bytes()


def test_order_of_directions_does_not_matter(run, whole):
    assert run(DIRECTIONS[::-1]).to_bytes() == whole.to_bytes()


@pytest.mark.parametrize("finished", [0, 1, 4])
def test_killed_run_continues(run, whole, monkeypatch, finished):
    observe, done = teacher_forced.observe_direction, []

    def dies(*arguments):
        if len(done) == finished:
            raise KeyboardInterrupt
        done.append(arguments[3])
        observe(*arguments)

    monkeypatch.setattr(teacher_forced, "observe_direction", dies)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.setattr(teacher_forced, "observe_direction", lambda *a: (done.append(a[3]), observe(*a)))
    assert run().to_bytes() == whole.to_bytes()
    assert done == list(DIRECTIONS)  # none was made twice


def test_finished_run_computes_nothing(run, whole, monkeypatch):
    run()
    monkeypatch.setattr(teacher_forced, "observe_direction", None)
    assert run().to_bytes() == whole.to_bytes()


@pytest.mark.parametrize(
    ("options", "named"),
    [({"sentences": 5}, "`sentences` was 12 and is 5"), ({"granularity": "pair"}, '`granularity` was "language"')],
)
def test_other_settings_are_refused(run, options, named):
    run()
    with pytest.raises(UsageError, match=named) as raised:
        run(**options)
    assert "--restart" in str(raised.value)
    again = run(**options, restart=True)
    assert again.to_bytes() == run(**options, folder="fresh").to_bytes()


def test_other_text_and_dtype_are_refused(run, text, tmp_path):
    run()
    other = tmp_path / "other"
    other.mkdir()
    for code in text.languages:
        (other / f"{code}.txt").write_text("\n".join(text.lines(code)).replace("w7", "w8", 1) + "\n")
    with pytest.raises(UsageError, match="`text/deu_Latn` was"):
        run(text=ParallelText.open(other))
    half = load_model(TINY, dtype=teacher_forced.torch.bfloat16)
    with pytest.raises(UsageError, match='`dtype` was "float32" and is "bfloat16"'):
        run(model=half)


def test_damaged_result_file_is_refused(run, tmp_path):
    run()
    path = tmp_path / "work" / "eng_Latn-deu_Latn.bin"
    content = path.read_bytes()
    for damaged in (b"", content[:50], b"\0" * 100):
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match="must be a result file"):
            run()
    path.write_bytes(content[:-100])
    with pytest.raises(UsageError):
        run()


@pytest.mark.parametrize("cut", [1, 3, 5])
@pytest.mark.parametrize("granularity", ["language", "pair"])
def test_merged_shards_are_one_run(run, tmp_path, cut, granularity):
    parts = [
        run(part, folder=f"shard-{n}", granularity=granularity)
        for n, part in enumerate((DIRECTIONS[cut:], DIRECTIONS[:cut]))
    ]
    paths = [tmp_path / f"{n}.safetensors" for n in range(2)]
    for part, path in zip(parts, paths, strict=True):
        part.save(path)
    merged = ExpertStatistics.merge_all([ExpertStatistics.load(path) for path in paths])
    merged.save(tmp_path / "merged.safetensors")
    run(folder="one", granularity=granularity).save(tmp_path / "one.safetensors")
    assert (tmp_path / "merged.safetensors").read_bytes() == (tmp_path / "one.safetensors").read_bytes()


def test_pairs_added_up_are_the_languages(run, whole):
    pairs = run(granularity="pair")
    assert pairs.keys("encoder") == whole.items
    assert pairs.as_language().to_bytes() == whole.to_bytes()


def test_encoder_sums_do_not_depend_on_the_target(run):
    """The batches do, so sums agree up to the last bits."""
    pairs = run(granularity="pair")
    one, other = (pairs.table("encoder", f"eng_Latn-{code}") for code in ("deu_Latn", "fra_Latn"))
    for field in one:
        np.testing.assert_allclose(one[field], other[field], rtol=1e-5, atol=1e-5)


def test_fewer_sentences_are_the_first_ones(run, text, tmp_path):
    first = tmp_path / "first"
    first.mkdir()
    for code in text.languages:
        (first / f"{code}.txt").write_text("".join(f"{line}\n" for line in text.lines(code)[:5]))
    ours = run(sentences=5)
    assert ours.to_bytes() == run(folder="other", text=ParallelText.open(first)).to_bytes()
    assert ours.signature["sentences"] == 5


def test_pruned_and_masked_models_are_refused(run, tiny):
    masks = global_masks(routing_of(tiny).spec)
    pruned = load_model(TINY, masks=masks, direction=DIRECTIONS[0])
    with pytest.raises(UsageError, match="must hold all its experts to be calibrated, but is pruned"):
        run(model=pruned)
    try:
        set_masks(tiny, masks, DIRECTIONS[0])
        with pytest.raises(UsageError, match="has masks set; clear them"):
            run()
    finally:
        clear_masks(tiny)


@pytest.mark.parametrize("direction", [("eng_Latn", "spa_Latn"), ("spa_Latn", "eng_Latn")])
def test_language_without_text_is_refused(run, direction):
    with pytest.raises(UsageError, match="`language` must be one of deu_Latn, eng_Latn, fra_Latn, but is `spa_Latn`"):
        run([direction])


def test_no_direction_at_all(run):
    with pytest.raises(UsageError):
        run([])


def test_model_is_left_as_it_was(run, tiny):
    run()
    assert all(stack.keep is None and stack.observer is None for stack in routing_of(tiny).stacks.values())
