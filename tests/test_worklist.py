import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nllb_prune.errors import UsageError
from nllb_prune.worklist import (
    BYTES_RESULTS,
    JSON_RESULTS,
    WorkItem,
    compute_items,
    iterate_items,
    missing_items,
    one_by_one,
    run_items,
    settings_digest,
    stale_reasons,
)

ITEMS = [WorkItem("eng_Latn-deu_Latn"), WorkItem("deu_Latn-eng_Latn"), WorkItem("eng_Latn-zho_Hans")]
SETTINGS = {"kept": 0.25, "ratio": [3, 1], "beams": 1}


def finished(folder):
    return [item for item in ITEMS if list(folder.glob(f"{item.id}.*"))]


class Recorder:
    """Computes results and remembers for which items; stops at one if asked."""

    def __init__(self, *, stop_at=None):
        self.seen, self.stop_at = [], stop_at

    def __call__(self, item):
        if item.id == self.stop_at:
            raise KeyboardInterrupt
        self.seen.append(item.id)
        return {"item": item.id, "values": (1, 2)}


def run(folder, compute, *, settings=SETTINGS, items=ITEMS, **options):
    return run_items(items, folder, settings=settings, compute=compute, **options)


def test_killed_run_continues_and_returns_the_same(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", Recorder(stop_at=ITEMS[1].id))
    assert finished(tmp_path / "killed") == ITEMS[:1]
    again = Recorder()
    results = run(tmp_path / "killed", again)
    assert again.seen == [item.id for item in ITEMS[1:]]
    assert results == run(tmp_path / "whole", Recorder())
    assert [result["item"] for result in results] == [item.id for item in ITEMS]


def test_equal_work_gives_equal_bytes_and_nothing_else_in_the_folder(tmp_path):
    for name in ("a", "b"):
        run(tmp_path / name, Recorder())
    contents = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("a", "b")]
    assert contents[0] == contents[1]
    assert set(contents[0]) == {f"{item.id}.json" for item in ITEMS}


def test_file_tells_how_it_was_made(tmp_path):
    run(tmp_path, Recorder())
    content = json.loads((tmp_path / f"{ITEMS[0].id}.json").read_text())
    assert content["format"] == "nllb-prune/result"
    assert content["settings"] == SETTINGS
    assert content["digest"] == settings_digest(SETTINGS)
    assert content["result"] == {"item": ITEMS[0].id, "values": [1, 2]}


def test_results_of_other_settings_are_refused_before_any_work(tmp_path):
    run(tmp_path, Recorder(), items=ITEMS[2:])
    compute = Recorder()
    with pytest.raises(UsageError) as raised:
        run(tmp_path, compute, settings={"kept": 0.5, "ratio": (3, 1), "length": "none"})
    message = str(raised.value)
    assert "`kept` was 0.25 and is 0.5" in message
    assert "`beams` was 1 and is not set" in message
    assert '`length` was not set and is "none"' in message
    assert "`ratio`" not in message
    assert message.endswith("Choose another folder, or make the results again with `--restart`.")
    assert compute.seen == []


def test_equal_settings_in_other_words_are_the_same(tmp_path):
    run(tmp_path, Recorder())
    compute = Recorder()
    run(tmp_path, compute, settings={"beams": 1, "ratio": (3, 1), "kept": 0.25})
    assert compute.seen == []


def test_restart_computes_all_again(tmp_path):
    run(tmp_path, Recorder())
    compute = Recorder(stop_at=ITEMS[2].id)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, compute, settings={"kept": 1}, restart=True)
    assert len(compute.seen) == 2
    assert finished(tmp_path) == ITEMS[:2]
    run(tmp_path, compute := Recorder(), settings={"kept": 1})
    assert compute.seen == [ITEMS[2].id]


@pytest.mark.parametrize("finished", range(len(ITEMS) + 1))
def test_restart_that_replaces_keeps_each_file_until_its_new_result_is_there(tmp_path, finished):
    run(tmp_path / "old", Recorder())
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    told, again = [], Recorder(stop_at=dict(enumerate(item.id for item in ITEMS)).get(finished))
    options = {"settings": {"kept": 1}, "restart": True, "stale": "recompute", "on_stale": told.append}
    if finished < len(ITEMS):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "old", again, **options)
    else:
        run(tmp_path / "old", again, **options)
    assert again.seen == [item.id for item in ITEMS[:finished]]
    assert told == []  # everything is made again, whatever it was made with
    run(tmp_path / "new", Recorder(), settings={"kept": 1})
    new = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    after = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    assert after == before | {f"{item.id}.json": new[f"{item.id}.json"] for item in ITEMS[:finished]}


def test_restart_that_replaces_makes_results_of_these_settings_again_too(tmp_path):
    run(tmp_path, Recorder(), items=ITEMS[:2])
    path = tmp_path / f"{ITEMS[0].id}.json"
    content, again = path.read_bytes(), Recorder()
    path.write_bytes(content.replace(b'"values":[1,2]', b'"values":[9,9]'))
    (tmp_path / f"{ITEMS[1].id}.json").write_bytes(b"{")
    assert path.read_bytes() != content
    run(tmp_path, again, restart=True, stale="recompute")
    assert again.seen == [item.id for item in ITEMS]
    assert path.read_bytes() == content


def test_progress_sees_the_items_still_to_do(tmp_path):
    run(tmp_path, Recorder(), items=ITEMS[:1])
    seen = []

    def progress(items):
        for item in items:
            seen.append((item, len(items)))
            yield item

    run(tmp_path, Recorder(), progress=progress)
    assert seen == [(item, 2) for item in ITEMS[1:]]


def test_results_of_bytes(tmp_path):
    def compute(item):
        return item.id.encode() + b"\n\0\xff\n"

    first = run(tmp_path, compute, results=BYTES_RESULTS)
    assert first == [compute(item) for item in ITEMS]
    assert run(tmp_path, Recorder(), results=BYTES_RESULTS) == first
    with pytest.raises(UsageError, match=r"`kept` was 0\.25 and is not set"):
        run(tmp_path, compute, results=BYTES_RESULTS, settings={})


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"3", b'{"result": 1}', b"\xff\xfe", b'{"result": 1, "format": 1}']
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / f"{ITEMS[0].id}.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"must be a result file, but cannot be read.*--restart"):
        run(tmp_path, Recorder())
    assert path.read_bytes() == content


def test_other_version_is_refused(tmp_path):
    run(tmp_path, Recorder())
    path = tmp_path / f"{ITEMS[0].id}.json"
    path.write_text(path.read_text().replace('"version":1', '"version":2'))
    with pytest.raises(UsageError, match="version 1, but is nllb-prune/result version 2 instead"):
        run(tmp_path, Recorder())


@pytest.mark.parametrize("name", ["", "../a", "a/../b", "/a", "a//b", "a/", ".a", " a", "a*b", "a\n", "ä"])
def test_id_that_cannot_name_a_file_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match="`id` must be letters, digits"):
        run(tmp_path, Recorder(), items=[WorkItem(name)])


def test_id_may_name_a_file_in_a_folder(tmp_path):
    items = [WorkItem("per language 3:1/eng_Latn-deu_Latn"), WorkItem("global-75%/eng_Latn-deu_Latn")]
    run(tmp_path, Recorder(), items=items)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.json")} == {f"{x.id}.json" for x in items}
    assert missing_items(items, tmp_path) == []


def test_item_given_twice_is_refused(tmp_path):
    with pytest.raises(UsageError, match="eng_Latn-deu_Latn occur more than once"):
        run(tmp_path, Recorder(), items=[*ITEMS, ITEMS[0]])


def test_error_of_an_item_ends_the_run(tmp_path):
    def compute(item):
        raise RuntimeError(item.id)

    with pytest.raises(RuntimeError, match=ITEMS[0].id):
        run(tmp_path, compute)
    assert finished(tmp_path) == []


def noted(results, read):
    """Results that note each one that is read as a whole."""

    def unpack(content):
        result, header = results.unpack(content)
        read.append(header["item"])
        return result, header

    return replace(results, unpack=unpack)


def test_results_are_read_one_at_a_time_and_in_order(tmp_path):
    read = []
    results = noted(JSON_RESULTS, read)
    assert compute_items(ITEMS, tmp_path, settings=SETTINGS, compute=Recorder(), results=results) is None
    found = iterate_items(ITEMS[::-1], tmp_path, settings=SETTINGS, results=results)
    assert read == []
    for item, result in zip(ITEMS[::-1], found, strict=True):
        assert result["item"] == item.id == read[-1]
        assert len(read) == ITEMS[::-1].index(item) + 1


def test_finished_files_are_checked_by_their_headers(tmp_path):
    """Their bodies, which may be large, are not read."""
    run(tmp_path, lambda item: b"result", results=BYTES_RESULTS)
    read, compute = [], Recorder()
    results = noted(BYTES_RESULTS, read)
    compute_items(ITEMS, tmp_path, settings=SETTINGS, compute=compute, results=results)
    others = {**SETTINGS, "kept": 0.5}
    with pytest.raises(UsageError, match=r"`kept` was 0\.25 and is 0\.5"):
        compute_items([WorkItem("new"), ITEMS[1]], tmp_path, settings=others, compute=compute, results=results)
    assert read == compute.seen == []


def test_missing_results_are_named_at_once(tmp_path):
    assert missing_items(ITEMS, tmp_path) == ITEMS
    with pytest.raises(UsageError, match=r"of 3 items, but lacks 3 of them \(.*\)\. Compute them first"):
        iterate_items(ITEMS, tmp_path, settings=SETTINGS)
    run(tmp_path, Recorder(), items=ITEMS[1:])
    assert missing_items(ITEMS, tmp_path) == ITEMS[:1]
    with pytest.raises(UsageError, match=r"lacks 1 of them \(eng_Latn-deu_Latn\)\."):
        iterate_items(ITEMS, tmp_path, settings=SETTINGS)
    many = [WorkItem(f"item{n}") for n in range(5)]
    with pytest.raises(UsageError, match=r"\(item0, item1, item2 and 2 more\)\."):
        iterate_items(many, tmp_path, settings=SETTINGS)


def test_results_of_other_settings_are_refused_when_they_are_read(tmp_path):
    run(tmp_path, Recorder())
    found = iterate_items(ITEMS, tmp_path, settings={**SETTINGS, "kept": 1})
    with pytest.raises(UsageError, match=r"`kept` was 0\.25 and is 1"):
        next(found)


def test_stale_results_are_made_again_and_the_others_kept(tmp_path):
    run(tmp_path, Recorder(), items=ITEMS[:2])
    run(tmp_path, Recorder(), items=ITEMS[2:], settings={**SETTINGS, "beams": 4})
    told, again = [], Recorder()
    results = run(tmp_path, again, settings={**SETTINGS, "beams": 4}, stale="recompute", on_stale=told.append)
    assert again.seen == [item.id for item in ITEMS[:2]]
    assert [result["item"] for result in results] == [item.id for item in ITEMS]
    assert [[file.path.stem for file in files] for files in told] == [again.seen]
    assert stale_reasons(told[0]) == "`beams` was 1 and is 4 (2 files)"
    run(tmp_path, again, settings={**SETTINGS, "beams": 4}, stale="recompute", on_stale=told.append)
    assert len(again.seen) == 2
    assert len(told) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b'{"result": 1, "format": 1}', "cannot be read"),
        (
            b'{"result":1,"format":"x","version":9,"digest":"","settings":{}}',
            "format was x version 9 and is",
        ),
    ],
)
def test_other_files_are_replaced_when_stale_ones_are(tmp_path, content, reason):
    path = tmp_path / f"{ITEMS[1].id}.json"
    path.write_bytes(content)
    told = []
    run(tmp_path, Recorder(), stale="recompute", on_stale=told.extend)
    assert [file.path for file in told] == [path]
    assert stale_reasons(told).startswith(reason)
    run(tmp_path / "new", Recorder())
    assert path.read_bytes() == (tmp_path / "new" / path.name).read_bytes()


def test_a_stale_file_stays_until_its_new_result_is_there_and_is_never_read_as_one(tmp_path):
    run(tmp_path, Recorder())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Recorder(stop_at=ITEMS[1].id), settings={"kept": 1}, stale="recompute")
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert [name for name in before if before[name] != after[name]] == [f"{ITEMS[0].id}.json"]
    found = iterate_items(ITEMS, tmp_path, settings={"kept": 1})
    assert next(found)["item"] == ITEMS[0].id
    with pytest.raises(UsageError, match="must be made with the settings of this run"):
        next(found)


def test_reasons_are_counted_and_the_most_frequent_named(tmp_path):
    def settings(item):
        return {"beams": 1, "about": item.id}

    items = [WorkItem(f"item{n}") for n in range(5)]
    run(tmp_path, Recorder(), items=items, settings=settings)
    told = []
    run(tmp_path, Recorder(), items=items, settings={"beams": 2, "about": 0}, stale="recompute", on_stale=told.extend)
    assert stale_reasons(told) == (
        '`beams` was 1 and is 2 (5 files); `about` was "item0" and is 0 (1 file); `about` was "item1" and is 0 '
        "(1 file); and 3 more reasons"
    )


def test_wrong_words_for_stale_and_for_who_computes(tmp_path):
    with pytest.raises(UsageError, match="must be one of refuse, recompute, but is ignore"):
        run(tmp_path, Recorder(), stale="ignore")
    with pytest.raises(UsageError, match="One of `compute` and `mapper` must be given, but none are"):
        run(tmp_path, None)
    with pytest.raises(UsageError, match="One of `compute` and `mapper` must be given, but both are"):
        run(tmp_path, Recorder(), mapper=one_by_one(Recorder()))


@given(order=st.permutations(range(len(ITEMS))), stop=st.integers(0, len(ITEMS)))
def test_a_mapper_finishes_in_any_order_and_each_result_is_kept_at_once(tmp_path_factory, order, stop):
    folder, reference = tmp_path_factory.mktemp("mapped"), tmp_path_factory.mktemp("serial")
    compute, closed = Recorder(), []

    def mapper(items):
        try:
            for place, n in enumerate(order):
                assert {item.id for item in finished(folder)} == {items[each].id for each in order[:place]}
                if place == stop:
                    raise KeyboardInterrupt
                yield items[n], compute(items[n])
        finally:
            closed.append(True)

    if stop < len(ITEMS):
        with pytest.raises(KeyboardInterrupt):
            run(folder, None, mapper=mapper)
    else:
        run(folder, None, mapper=mapper)
    assert closed == [True]
    run(folder, Recorder())
    run(reference, Recorder())
    for item in ITEMS:
        assert (folder / f"{item.id}.json").read_bytes() == (reference / f"{item.id}.json").read_bytes()


def test_a_mapper_gets_only_what_is_pending(tmp_path):
    run(tmp_path, Recorder(), items=ITEMS[:1])
    seen = []

    def mapper(items):
        seen.extend(items)
        yield from one_by_one(Recorder())(items)

    for _ in range(2):
        run(tmp_path, None, mapper=mapper)
    assert seen == ITEMS[1:]


def test_a_mapper_that_leaves_out_or_repeats_is_found(tmp_path):
    with pytest.raises(UsageError, match="must yield each item of its list, but leaves out deu_Latn-eng_Latn, eng"):
        run(tmp_path / "a", None, mapper=lambda items: one_by_one(Recorder())(items[:1]))
    with pytest.raises(UsageError, match="must yield each item of its list once, but yields eng_Latn-deu_Latn too"):
        run(tmp_path / "b", None, mapper=lambda items: one_by_one(Recorder())([items[0], items[0]]))


def test_progress_steps_as_a_mapper_finishes(tmp_path):
    steps = []

    def progress(items):
        for n, item in enumerate(items):
            yield item
            steps.append((n, len(finished(tmp_path))))

    run(tmp_path, None, mapper=lambda items: one_by_one(Recorder())(items[::-1]), progress=progress)
    assert steps == [(0, 1), (1, 2), (2, 3)]


KILLED = """
import sys, time
from pathlib import Path
from nllb_prune.worklist import WorkItem, compute_items
def compute(item):
    if item.id == "item3":
        time.sleep(60)
    return item.id
compute_items([WorkItem(f"item{n}") for n in range(5)], Path(sys.argv[1]), settings={"a": 1}, compute=compute)
"""


def test_sigkill_loses_what_was_in_flight(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)])
    while process.poll() is None and not (tmp_path / "item2.json").exists():
        time.sleep(0.02)
    process.kill()
    process.wait()
    items, compute = [WorkItem(f"item{n}") for n in range(5)], Recorder()
    run(tmp_path, compute, items=items, settings={"a": 1})
    assert compute.seen == ["item3", "item4"]
