"""Calibration of a streamed model gives what that of the same model in memory gives, in any chunks, killed or not."""

import json
import shutil
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nllb_prune.calibration import streamed_plan, teacher_forced
from nllb_prune.calibration.calibrate import calibrate, prepare
from nllb_prune.calibration.fields import GROUPS, fields_of
from nllb_prune.calibration.statistics import ExpertStatistics
from nllb_prune.calibration.streamed_state import load_state
from nllb_prune.calibration.teacher_forced import observe_pairs
from nllb_prune.corpus import ParallelText
from nllb_prune.errors import UsageError
from nllb_prune.masks import MaskSet
from nllb_prune.model.expected import expected_tensors
from nllb_prune.model.families import FAMILIES
from nllb_prune.model.loading import load_model
from nllb_prune.model.routing import routing_of
from nllb_prune.model.source import embedded_text, load_tokenizer, read_config
from nllb_prune.model.streamed import load_streamed, streamed_blocks
from nllb_prune.planning.plan import plan
from nllb_prune.tokenization import encode

TINY = Path(__file__).parent.parent / "reference" / "tiny"
DIRECTIONS = (("eng_Latn", "deu_Latn"), ("eng_Latn", "fra_Latn"), ("deu_Latn", "eng_Latn"))
FORWARD = tuple(group for group in GROUPS if group != "gradients")
COUNTS = ("tokens", "first", "second", "together", "token_ids")
ONE_CHUNK, FEW_CHUNKS = 10**9, 530_000
STEPS = 4  # sparse layers of the tiny model


@pytest.fixture(scope="module", autouse=True)
def short_batches():
    """Several of each direction."""
    with batch_positions(40):
        yield


@contextmanager
def batch_positions(count):
    with pytest.MonkeyPatch.context() as patch:
        for module in (teacher_forced, streamed_plan):
            patch.setattr(module, "BATCH_POSITIONS", count)
        yield


@pytest.fixture(scope="module")
def streamed():
    return load_streamed(TINY)


@pytest.fixture
def run(streamed, tokenizer, text, tmp_path):
    def calibrated(*, folder="work", model=streamed, directions=DIRECTIONS, **options):
        options = {"collect": FORWARD, "stream_memory": FEW_CHUNKS} | options
        return calibrate(model, tokenizer, text, directions, folder=tmp_path / folder, **options)

    return calibrated


@pytest.fixture(scope="module")
def undisturbed(streamed, tokenizer, text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return calibrate(
        streamed, tokenizer, text, DIRECTIONS, collect=FORWARD, stream_memory=FEW_CHUNKS, folder=folder
    ).to_bytes()


def assert_near(ours, theirs):
    """Sums to 1e-5 relative, counts to 1e-5 of their total."""
    assert list(ours.tables) == list(theirs.tables)
    assert (ours.items, ours.signature, ours.collect) == (theirs.items, theirs.signature, theirs.collect)
    for place, table in theirs.tables.items():
        for name, expected in table.items():
            found, scale = ours.tables[place][name], np.abs(expected.astype(float)).max()
            if name in COUNTS or name == "rank":
                assert np.abs(found.astype(float) - expected).sum() <= 1e-5 * expected.sum(), (place, name)
            else:
                np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * scale, err_msg=f"{place} {name}")
    for stack, table in theirs.weights.items():
        for name, expected in table.items():
            np.testing.assert_allclose(ours.weights[stack][name], expected, rtol=2e-5, atol=1e-6)


# what it computes


@pytest.mark.parametrize("memory", [ONE_CHUNK, FEW_CHUNKS])
def test_all_groups(run, tiny, memory):
    assert_near(run(stream_memory=memory), run(model=tiny, folder="memory"))


@pytest.mark.parametrize(
    "options",
    [
        {"granularity": "pair"},
        {"collect": ["core"], "pairs_per_target": 6},
        {"sentences": 1},
        {"directions": DIRECTIONS[:1]},
    ],
    ids=str,
)
def test_settings(run, tiny, options):
    assert_near(run(**options), run(**options, model=tiny, folder="memory"))


def test_half_precision(run):
    """Near ties are many: each token still goes to two experts, and most to the same."""
    ours, theirs = (
        run(model=load(TINY, dtype=torch.bfloat16), folder=load.__name__) for load in (load_streamed, load_model)
    )
    assert ours.signature == theirs.signature
    for place, table in theirs.tables.items():
        np.testing.assert_array_equal(ours.tables[place]["tokens"], table["tokens"])
        assert np.abs(ours.tables[place]["first"] - table["first"]).sum() < 0.1 * table["first"].sum()


def test_within_masks(run, tiny, streamed):
    """Each direction within its own; experts that no direction may use are not read."""
    spec, kept = routing_of(tiny).spec, {}
    for n, code in enumerate(("eng_Latn", "deu_Latn", "fra_Latn")):
        kept[code] = ((n, n + 1, n + 2), (n + 1, n + 3))
    masks = MaskSet(
        model_name="tiny",
        fingerprint=spec.fingerprint,
        stacks=spec.stacks,
        granularity="language",
        masks={"encoder": kept, "decoder": kept},
    )
    before = experts_read(streamed)
    ours = run(masks=masks, stream_memory=ONE_CHUNK, collect=["norms"])
    assert experts_read(streamed) - before == 4 + 4 + 5 + 5
    assert_near(ours, run(masks=masks, collect=["norms"], model=tiny, folder="memory"))


def test_parts_of_both_kinds_are_merged(run, tiny, undisturbed):
    parts = [
        run(model=tiny, shard=(0, 2), folder="memory"),
        run(shard=(1, 2)),
    ]
    assert_near(ExpertStatistics.merge_all(parts), ExpertStatistics.from_bytes(undisturbed))


def test_directions_of_both_kinds_share_a_folder(run, tiny, streamed):
    run(model=tiny, directions=DIRECTIONS[:1])
    ours = run()
    assert_near(ours, run(model=tiny, folder="memory"))


class Choices:
    """Keeps what each token was routed to, by stack and layer."""

    wants_outputs = False

    def __init__(self):
        self.calls = {}

    def observe(self, stack, layer, routed):
        self.calls.setdefault((stack, layer), []).append((routed.chosen, routed.probabilities))

    def observe_outputs(self, *_):
        raise AssertionError


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    """Statistics of the embedded model on three directions, in memory and streamed."""
    tokenizer, text = load_tokenizer("mini"), ParallelText.open(embedded_text(), "dev")
    directions = [("deu_Latn", "eng_Latn"), ("eng_Latn", "tur_Latn"), ("tur_Latn", "deu_Latn")]
    collect, made = ["norms", "vocabulary", "coselection", "dimensions", "reservoir"], []
    models = [load("mini") for load in (load_streamed, load_model)]
    for number, model in enumerate(models):
        folder = tmp_path_factory.mktemp(str(number))
        options = {"sentences": 25, "collect": collect, "folder": folder, "stream_memory": 11_000_000}
        with batch_positions(1000):
            made.append(calibrate(model, tokenizer, text, directions, **options))
    return models, made, tokenizer, text


def test_mini(mini):
    _, (ours, theirs), _, _ = mini
    assert_near(ours, theirs)
    assert plan(ours, kept=0.5).masks == plan(theirs, kept=0.5).masks


def test_what_is_counted_elsewhere_is_a_near_tie(mini):
    """Every token of mini goes to the same experts in the same order, or to those of nearly equal probability."""
    models, _, tokenizer, text = mini
    noted = []
    for model in models:
        choices = Choices()
        choices.classes = choices.ids = None
        pairs = [encode(tokenizer, text.lines(code)[:60], code) for code in ("spa_Latn", "rus_Cyrl")]
        observe_pairs(model, *pairs, choices)
        noted.append(
            {place: [torch.cat(each) for each in zip(*calls, strict=True)] for place, calls in choices.calls.items()}
        )
    tokens, margins = 0, []
    for place, (chosen, probabilities) in noted[1].items():
        found = noted[0][place][0]
        torch.testing.assert_close(noted[0][place][1], probabilities, rtol=0, atol=1e-4)
        tokens += len(chosen)
        for n in (found != chosen).any(1).nonzero().flatten().tolist():
            pair = probabilities[n, torch.stack([found[n], chosen[n]])]  # what each of them chose, first and second
            margins.append(float((pair[0] - pair[1]).abs().max()))
    assert len(margins) <= max(1, 1e-5 * tokens), margins
    assert all(margin < 1e-5 for margin in margins), margins


# what is read


def experts_read(model):
    return sum(
        layer.bank.experts_read for layers in streamed_blocks(model).layers.values() for layer in layers if layer.bank
    )


def test_a_chunk_reads_each_expert_once(run, streamed):
    weights, before = streamed_blocks(streamed).weights, experts_read(streamed)
    statistics = run(stream_memory=ONE_CHUNK, collect=["norms"], granularity="pair")
    routed = 0
    for stack in ("encoder", "decoder"):
        table = statistics.pooled(stack, statistics.keys(stack))
        routed += int((table["first"][0] + table["second"][0] > 0).sum())
    assert experts_read(streamed) - before == routed <= 4 * 8
    # nobody looks at what the last experts make: they are not read
    before, bytes_before = experts_read(streamed), weights.bytes_read
    run(stream_memory=ONE_CHUNK, collect=["core"], folder="core")
    last = int((table["first"][0, -1] + table["second"][0, -1] > 0).sum())
    assert experts_read(streamed) - before == routed - last
    assert weights.bytes_read > bytes_before


@pytest.mark.parametrize("memory", [ONE_CHUNK, FEW_CHUNKS])
def test_the_outlook_is_kept(streamed, tokenizer, text, tmp_path, memory):
    weights = streamed_blocks(streamed).weights
    calibration = prepare(
        streamed, tokenizer, text, DIRECTIONS, collect=set(FORWARD) - {"weights"}, folder=tmp_path, stream_memory=memory
    )
    outlook, before = calibration.outlook(), weights.bytes_read
    assert outlook.sentences == 3 * 12
    assert (outlook.chunks == 1) == (memory == ONE_CHUNK)
    assert f"{outlook.chunks} chunk" in str(outlook)
    calibration.observe()
    assert 0.5 * outlook.reading < weights.bytes_read - before <= outlook.reading
    assert calibration.outlook().chunks == calibration.outlook().reading == 0


def test_a_model_in_memory_has_no_outlook(tiny, tokenizer, text, tmp_path):
    assert prepare(tiny, tokenizer, text, DIRECTIONS, folder=tmp_path).outlook() is None


MEASURE = """
import re, sys
from pathlib import Path
import torch
from nllb_prune.calibration.calibrate import prepare
from nllb_prune.corpus import ParallelText
from nllb_prune.model.source import embedded_text, load_tokenizer
from nllb_prune.model.streamed import load_streamed

torch.set_num_threads(1)
status = lambda name: 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
folder, work = sys.argv[1:]
tokenizer = load_tokenizer("mini")
text = ParallelText.open(embedded_text(), "dev").head(8)
model = load_streamed(folder)
run = prepare(
    model, tokenizer, text, [("deu_Latn", "eng_Latn")], collect=["norms"], folder=Path(work), stream_memory=30_000_000
)
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = status("VmRSS")
run.observe()
print(status("VmHWM") - before, run.outlook(restart=True).memory)
"""


def large_model(folder):
    """A random model of 200 MB whose layers have 1 MB of dense weights and 128 experts of .4 MB, float32."""
    shutil.copytree(Path(embedded_text()).parent, folder, ignore=shutil.ignore_patterns("*.safetensors", "text"))
    sizes = {f"{stack}_{name}": n for stack in ("encoder", "decoder") for name, n in SIZES.items()}
    config = json.loads((folder / "config.json").read_text()) | sizes | {"num_experts": 128}
    (folder / "config.json").write_text(json.dumps(config))
    read, family = read_config(folder), FAMILIES["nllb-moe"]
    expected = expected_tensors(family, read, family.spec(read), None)
    shapes = dict.fromkeys(expected.routers, (128, config["d_model"])) | expected.expert_shapes
    shapes |= {name: shape for name, shape in expected.dense.items() if name not in expected.tied[0][1:]}
    generator = torch.Generator().manual_seed(0)
    save_file(
        {name: torch.rand(*shape, generator=generator) - 0.5 for name, shape in shapes.items()},
        folder / "model.safetensors",
    )


SIZES = {"layers": 2, "sparse_step": 1, "ffn_dim": 300}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is measured as Linux tells it")
def test_memory(tmp_path):
    large_model(tmp_path / "model")
    size = sum(path.stat().st_size for path in (tmp_path / "model").glob("*.safetensors"))
    assert size > 180_000_000
    script = tmp_path / "measure.py"
    script.write_text(MEASURE)
    command = [sys.executable, str(script), str(tmp_path / "model"), str(tmp_path / "work")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    peak, promised = map(int, found.stdout.split())
    assert peak <= promised < 0.4 * size, (peak, promised)


# killed


class KilledError(Exception):
    pass


def dies_after(steps):
    """A progress that ends the run before a step."""

    def progress(items):
        for number, item in enumerate(items):
            if number == steps:
                raise KilledError
            yield item

    return progress


@pytest.mark.parametrize("steps", [1, 3, 4, 7])
def test_a_killed_run_goes_on(run, undisturbed, tmp_path, steps):
    with pytest.raises(KilledError):
        run(progress=dies_after(steps))
    path = tmp_path / "work" / "streamed-1-of-1.state"
    saved = load_state(path)
    assert STEPS * saved.chunk + saved.steps == steps
    left = []
    assert run(progress=lambda items: left.extend(items) or items).to_bytes() == undisturbed
    assert left[0] == divmod(steps, STEPS)
    assert not path.exists()


def test_a_run_that_is_killed_at_every_step(run, undisturbed, tmp_path):
    for _ in range(100):
        try:
            statistics = run(progress=dies_after(1))
            break
        except KilledError:
            assert (tmp_path / "work" / "streamed-1-of-1.state").exists()
    assert statistics.to_bytes() == undisturbed


def test_chunks_cut_directions(run, tmp_path):
    """Otherwise the tests above would not be of sums that are carried over."""
    with pytest.raises(KilledError):
        run(progress=dies_after(STEPS))
    saved = load_state(tmp_path / "work" / "streamed-1-of-1.state")
    assert any(name.startswith("sums/") for name in saved.tensors)
    assert not any(name.startswith("batch/") for name in saved.tensors)


@pytest.mark.parametrize("other", [{"stream_memory": ONE_CHUNK}, {"directions": DIRECTIONS[1:]}], ids=str)
def test_what_a_run_of_other_settings_left_is_not_used(run, other):
    with pytest.raises(KilledError):
        run(progress=dies_after(3))
    with pytest.warns(UserWarning, match="is of a run with other directions, settings or memory, or damaged"):
        ours = run(**other)
    assert ours.to_bytes() == run(**other, folder="fresh").to_bytes()


@pytest.mark.parametrize("damage", [lambda c: c[:-100], lambda c: b"", lambda c: b"{}\n" + c, lambda c: c[:200]])
def test_damaged_states_are_not_used(run, undisturbed, tmp_path, damage):
    with pytest.raises(KilledError):
        run(progress=dies_after(3))
    path = tmp_path / "work" / "streamed-1-of-1.state"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="or damaged"):
        assert run().to_bytes() == undisturbed


def test_restart_begins_again(run, undisturbed):
    with pytest.raises(KilledError):
        run(progress=dies_after(3))
    begun = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(restart=True, progress=lambda items: begun.extend(items) or items)
    assert begun[0] == (0, 0)


def test_other_settings_of_finished_directions_are_refused(run):
    run(collect=["core"])
    with pytest.raises(UsageError, match=r'`collect` was \["core"\] and is \["core","norms"\].*--restart'):
        run(collect=["norms"])


def test_no_place_for_the_state(run, tmp_path):
    (tmp_path / "work").write_text("a file")
    with pytest.raises(UsageError, match="must be a place to write"):
        run()


# what is wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "outputs"}, "`mode` must be references with a streamed model, but is outputs instead"),
        ({"collect": ["gradients"]}, "`collect` must be of core, norms, .* with a streamed model, but names gradients"),
        ({"stream_memory": 1000}, r"`stream_memory` must be .* or more to hold one batch .*, but is 1.00 kB"),
    ],
)
def test_what_cannot_be_streamed_is_refused(run, options, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        run(**options)
    assert not list(tmp_path.rglob("*.bin"))


def test_fields_are_those_of_the_groups(undisturbed):
    statistics = ExpertStatistics.from_bytes(undisturbed)
    for table in statistics.tables.values():
        assert set(table) == set(fields_of(group for group in FORWARD if group != "weights"))
