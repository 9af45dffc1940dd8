"""Calibration runs: what is resumed, sharded or merged has the bytes of one run; other settings are refused."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nllb_prune.calibration import calibrate as module
from nllb_prune.calibration import collectors, pairing, tables
from nllb_prune.calibration.calibrate import calibrate, prepare
from nllb_prune.calibration.fields import GROUPS, fields_of
from nllb_prune.calibration.processes import Processes
from nllb_prune.calibration.statistics import CLASSES, ExpertStatistics
from nllb_prune.calibration.weights import weight_tables
from nllb_prune.corpus import ParallelText
from nllb_prune.errors import UsageError
from nllb_prune.languages import split_direction
from nllb_prune.masks import MaskSet
from nllb_prune.model.loading import load_model
from nllb_prune.model.routing import clear_masks, routing_of, set_masks

TINY = Path(__file__).parent.parent / "reference" / "tiny"
DIRECTIONS = tuple(permutations(("eng_Latn", "deu_Latn", "fra_Latn"), 2))
EVERYTHING = tuple(GROUPS)


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


class Work:
    """Notes each direction whose pass begins; dies when asked to."""

    def __init__(self, monkeypatch, *, dies_at=None):
        self.begun, self.dies_at = [], dies_at
        self.compute = module._Work.compute
        monkeypatch.setattr(module._Work, "compute", lambda work, lines: self(work, lines))

    def __call__(self, work, lines):
        if len(self.begun) == self.dies_at:
            self.dies_at = None
            raise KeyboardInterrupt
        self.begun.append(lines.direction)
        return self.compute(work, lines)


@pytest.mark.parametrize("finished", [0, 1, 4])
def test_killed_run_continues(run, whole, monkeypatch, finished):
    work = Work(monkeypatch, dies_at=finished)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert run().to_bytes() == whole.to_bytes()
    assert work.begun == list(DIRECTIONS)  # none was made twice


def test_finished_run_computes_nothing(run, whole, monkeypatch):
    run()
    work = Work(monkeypatch)
    assert run().to_bytes() == whole.to_bytes()
    assert work.begun == []


def test_what_one_process_left_behind_does_not_matter(run, whole, tmp_path):
    (tmp_path / "work").mkdir()
    left = tmp_path / "work" / ".eng_Latn-deu_Latn.bin.123.tmp"
    left.write_bytes(b"half of a resu")
    assert run().to_bytes() == whole.to_bytes()
    assert left.read_bytes() == b"half of a resu"  # another process may be writing it


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"sentences": 5}, "`sentences` was 12 and is 5"),
        ({"granularity": "pair"}, '`granularity` was "language"'),
        ({"collect": ["norms"]}, r'`collect` was \["core"\] and is \["core","norms"\]'),
        ({"mode": "outputs"}, '`mode` was "references" and is "outputs, greedy"'),
        ({"pairs_per_target": 6}, r"`lines` was \[0,1,12\] and is \[0,1,6\]; `pairs_per_target` was not set and is 6"),
    ],
)
def test_other_settings_are_refused(run, options, named):
    directions = DIRECTIONS[:2]
    run(directions)
    with pytest.raises(UsageError, match=named) as raised:
        run(directions, **options)
    assert "--restart" in str(raised.value)
    again = run(directions, **options, restart=True)
    assert again.to_bytes() == run(directions, **options, folder="fresh").to_bytes()


def test_other_text_and_dtype_are_refused(run, text, tmp_path):
    run()
    other = tmp_path / "other"
    other.mkdir()
    for code in text.languages:
        (other / f"{code}.txt").write_text("\n".join(text.lines(code)).replace("w7", "w8", 1) + "\n")
    with pytest.raises(UsageError, match="`text/deu_Latn` was"):
        run(text=ParallelText.open(other))
    half = load_model(TINY, dtype=torch.bfloat16)
    with pytest.raises(UsageError, match='`dtype` was "float32" and is "bfloat16"'):
        run(model=half)


def test_a_model_of_other_training_is_refused(run, tiny, monkeypatch):
    run(DIRECTIONS[:1])
    monkeypatch.setattr(routing_of(tiny), "identity", "0123456789abcdef")
    with pytest.raises(UsageError, match=r"`identity` was .* and is"):
        run(DIRECTIONS[:1])


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


COLLECTED = {
    "language": {"collect": EVERYTHING},
    "pair": {"collect": EVERYTHING, "granularity": "pair"},
    "outputs": {"collect": ["vocabulary"], "mode": "outputs", "beams": 2},
    "spread": {"collect": ["reservoir"], "pairs_per_target": "all"},
}


@pytest.fixture(scope="module")
def parts(tiny, tokenizer, text, tmp_path_factory):
    """One statistics of each direction alone, by kind of run, and those of one run over all."""
    made = {}

    def of(kind):
        if kind not in made:
            folder, options = tmp_path_factory.mktemp(kind), COLLECTED[kind]
            with pytest.MonkeyPatch.context() as patch:
                few_samples(patch)
                patch.setattr(pairing, "LEAST", 6)
                one = calibrate(tiny, tokenizer, text, DIRECTIONS, folder=folder / "one", **options)
                shards = [
                    calibrate(tiny, tokenizer, text, DIRECTIONS, folder=folder / f"{n}", shard=(n, 6), **options)
                    for n in range(6)
                ]
            made[kind] = one.to_bytes(), [ExpertStatistics.from_bytes(shard.to_bytes()) for shard in shards]
        return made[kind]

    return of


def few_samples(patch):
    patch.setattr(collectors, "SAMPLES", 50)
    patch.setattr(tables, "SAMPLES", 50)


@pytest.mark.parametrize("kind", COLLECTED)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_merged_shards_are_one_run(parts, monkeypatch, kind, data):
    few_samples(monkeypatch)
    one, shards = parts(kind)
    left = data.draw(st.permutations(shards))
    while len(left) > 1:
        size = data.draw(st.integers(2, len(left)))
        left = [*left[size:], ExpertStatistics.merge_all(left[:size])]
    assert left[0].to_bytes() == one


def test_shards_cover_each_direction_once(run):
    items = [run(shard=(n, 4), folder=str(n)).items for n in range(4)]
    assert [len(each) for each in items] == [2, 2, 1, 1]
    assert sorted(item for each in items for item in each) == sorted("-".join(pair) for pair in DIRECTIONS)


def test_shards_of_one_folder_leave_the_rest_for_a_run_without(run, whole, monkeypatch):
    for number in range(3):
        run(shard=(number, 3))
    work = Work(monkeypatch)
    assert run().to_bytes() == whole.to_bytes()
    assert work.begun == []


def test_restart_of_a_shard_leaves_the_others(run, whole, monkeypatch):
    run()
    work = Work(monkeypatch)
    run(shard=(1, 2), restart=True)
    assert work.begun == list(DIRECTIONS[1::2])
    assert run().to_bytes() == whole.to_bytes()


def test_observing_and_adding_up_are_two_steps(tiny, tokenizer, text, whole, tmp_path, monkeypatch):
    calibration = prepare(tiny, tokenizer, text, DIRECTIONS, folder=tmp_path)
    assert calibration.missing() == ["-".join(direction) for direction in DIRECTIONS]
    with monkeypatch.context() as patch:
        patch.setattr(ExpertStatistics, "from_bytes", None)  # observing keeps nothing, so it reads nothing back
        assert calibration.observe(shard=(1, 2)) is None
    assert calibration.missing() == ["-".join(direction) for direction in DIRECTIONS[::2]]
    work = Work(monkeypatch)
    with pytest.raises(UsageError, match=r"of 6 items, but lacks 3 of them \(eng_Latn-deu_Latn, "):
        calibration.statistics()
    assert len(calibration.statistics(shard=(1, 2)).items) == 3
    assert work.begun == []  # adding up makes nothing
    calibration.observe()
    assert calibration.statistics().to_bytes() == whole.to_bytes()


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0), (0, 7)])
def test_wrong_shards_are_refused(run, shard):
    with pytest.raises(UsageError, match="`shard` must be"):
        run(shard=shard)


def test_everything_at_once_is_each_alone(run, tiny):
    """Groups do not disturb each other, and batches are the same whatever is collected."""
    together = run(collect=EVERYTHING, folder="all")
    assert together.collect == EVERYTHING
    for group in EVERYTHING[1:]:
        alone = run(collect=[group], folder=group)
        assert alone.collect == ("core", group)
        for place, table in alone.tables.items():
            for name in fields_of([group] if group != "weights" else ["core"]):
                if group == "gradients":
                    np.testing.assert_allclose(table[name], together.tables[place][name], rtol=1e-6, atol=1e-9)
                else:
                    np.testing.assert_array_equal(table[name], together.tables[place][name])
    for stack, table in weight_tables(tiny).items():
        for name, values in table.items():
            np.testing.assert_array_equal(together.weights[stack][name], values)


def test_samples_of_directions_are_drawn_apart(run):
    pairs = run(collect=["reservoir"], granularity="pair")
    priorities = [pairs.table("encoder", item)["sample_priority"] for item in pairs.items]
    drawn = np.concatenate(priorities)
    assert len(set(drawn.tolist())) == len(drawn)


def test_spread_lines_reach_the_model(run, text, monkeypatch):
    """Twelve lines of each target, six of each source where a direction needs six."""
    monkeypatch.setattr(pairing, "LEAST", 6)
    pairs = run(granularity="pair", pairs_per_target="all")
    assert len(pairs.items) == 6
    for item in pairs.items:
        first = int(item not in ("eng_Latn-deu_Latn", "deu_Latn-eng_Latn", "deu_Latn-fra_Latn"))
        for stack, code in zip(("encoder", "decoder"), item.split("-"), strict=True):
            words = sum(len(line.split()) for line in text.lines(code)[first::2])
            assert pairs.table(stack, item)["tokens"][0] == words + 2 * 6, item
    assert pairs.signature["pairs_per_target"] == 12


def test_pairs_per_target_takes_the_first_lines(run, text):
    statistics = run(granularity="pair", pairs_per_target=5)
    assert len(statistics.items) == 3
    assert (statistics.signature["pairs_per_target"], statistics.signature["sentences"]) == (5, 12)
    for item in statistics.items:
        words = sum(len(line.split()) for line in text.lines(item.split("-")[1])[:5])
        assert statistics.table("decoder", item)["tokens"][0] == words + 2 * 5


def test_spreads_over_other_directions_are_not_merged(run):
    """Both give each target its first six lines, but German gets them of other sources."""
    spreads = [
        run(directions, granularity="pair", pairs_per_target=6, folder=str(len(directions)))
        for directions in (DIRECTIONS, [("fra_Latn", "deu_Latn")])
    ]
    assert not set(spreads[0].items) & set(spreads[1].items)
    with pytest.raises(UsageError, match=r"must be made with equal settings, but have spread \w{16} and \w{16}"):
        spreads[0].merge(spreads[1])


@pytest.mark.parametrize("least", [6, 48])
def test_shards_of_a_spread_and_its_directions_again_are_of_one_signature(run, monkeypatch, least):
    monkeypatch.setattr(pairing, "LEAST", least)
    one = run(pairs_per_target="all")
    shards = [run(pairs_per_target=12, shard=(n, 3), folder=f"shard{n}") for n in range(3)]
    assert ExpertStatistics.merge_all(shards).to_bytes() == one.to_bytes()
    again = run([split_direction(item) for item in one.items], pairs_per_target=12, folder="again")
    assert again.signature == one.signature
    assert "spread" not in run(folder="every line").signature


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"collect": ["norm"]}, "`collect` must be of core, norms"),
        ({"mode": "both"}, "`mode` must be one of references, outputs, but is both"),
        ({"beams": 4}, "`beams` must be left out with the mode references"),
        ({"mode": "outputs", "beams": 0}, "`beams` must be 1 or more"),
        ({"pairs_per_target": 13}, "`pairs_per_target` must be 1 to 12, the lines of the text, but is 13"),
        ({"pairs_per_target": 6, "sentences": 5}, "`pairs_per_target` must be 1 to 5"),
        ({"sentences": 0}, "`n` must be at least 1"),
        ({"granularity": "global"}, "`granularity` must be language or pair"),
    ],
)
def test_wrong_options_are_refused(run, options, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        run(**options)
    assert not list(tmp_path.rglob("*.bin"))


def masks_of(spec, **by_stack):
    return MaskSet(
        model_name="tiny", fingerprint=spec.fingerprint, stacks=spec.stacks, granularity="language", masks=by_stack
    )


def test_each_direction_is_observed_within_its_own_masks(run, tiny):
    languages = ("eng_Latn", "deu_Latn", "fra_Latn")
    kept = {code: ((n, n + 1, n + 4), (n + 2, n + 5)) for n, code in enumerate(languages)}
    masks = masks_of(routing_of(tiny).spec, encoder=kept, decoder=kept)
    statistics = run(masks=masks, collect=["norms", "coselection"])
    assert statistics.signature["masks"] == masks.signature
    for (stack, code), table in statistics.tables.items():
        for layer, ids in enumerate(kept[code]):
            outside = [expert for expert in range(8) if expert not in ids]
            for name in ("first", "second", "gate", "p_all", "norm", "norm_max"):
                assert not table[name][:, layer, outside].any(), (stack, code, name)
                assert table[name][0, layer, list(ids)].all()
            assert not table["together"][layer, outside].any()


def test_masks_of_some_languages_are_refused_before_anything_is_done(run, tiny, tmp_path):
    kept = {"eng_Latn": ((0, 1), (2, 3))}
    masks = masks_of(routing_of(tiny).spec, encoder=kept, decoder={**kept, "deu_Latn": ((0, 1), (2, 3))})
    with pytest.raises(UsageError, match=r"`source` must have a mask \(eng_Latn\), but is deu_Latn"):
        run([("eng_Latn", "deu_Latn"), ("deu_Latn", "eng_Latn")], masks=masks)
    assert not list(tmp_path.rglob("*.bin"))


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


@pytest.mark.parametrize("mode", ["references", "outputs"])
def test_half_precision(run, mode):
    """Every group is collected of a model in bfloat16, and tells about the same as in float32."""
    half = run(model=load_model(TINY, dtype=torch.bfloat16), collect=EVERYTHING, mode=mode, folder="half")
    assert half.signature["dtype"] == "bfloat16"
    for stack, code in half.tables:
        table = half.table(stack, code)
        for name in ("first", "second"):
            assert (table[name].sum(-1) == table["tokens"][:, None]).all()
        assert table["gradient_squared"].any()
        if mode == "references" or stack == "encoder":  # own outputs are other ones
            full = run(collect=EVERYTHING, mode=mode, folder="full").table(stack, code)
            np.testing.assert_array_equal(table["tokens"], full["tokens"])
            for name in ("p_all", "norm", "output_squared"):
                assert abs(table[name] - full[name]).sum() < 0.1 * full[name].sum(), name


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


@pytest.mark.parametrize(
    ("wanted", "local_rank", "expected"),
    [("cpu", 1, "cpu"), ("cuda", 0, "cuda:0"), ("cuda", 3, "cuda:1"), ("cuda:0", 1, "cuda:0")],
)
def test_processes_share_the_devices_out(monkeypatch, wanted, local_rank, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Processes(5, 8, local_rank).device(wanted) == expected
