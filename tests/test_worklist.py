import json
from dataclasses import replace

import pytest

from nllb_prune.errors import UsageError
from nllb_prune.worklist import (
    BYTES_RESULTS,
    JSON_RESULTS,
    WorkItem,
    compute_items,
    iterate_items,
    missing_items,
    run_items,
    settings_digest,
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


@pytest.mark.parametrize("name", ["", "../a", "a/b", ".a", "a b", "a\n"])
def test_id_that_cannot_name_a_file_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match="`id` must be letters, digits"):
        run(tmp_path, Recorder(), items=[WorkItem(name)])


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
