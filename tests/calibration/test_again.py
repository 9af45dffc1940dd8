from itertools import permutations

import numpy as np
import pytest

from nllb_prune.calibration.again import calibrate_again
from nllb_prune.calibration.calibrate import calibrate
from nllb_prune.calibration.statistics import ExpertStatistics
from nllb_prune.corpus import ParallelText
from nllb_prune.errors import UsageError
from nllb_prune.planning import plan

DIRECTIONS = tuple(permutations(("eng_Latn", "deu_Latn", "fra_Latn"), 2))


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"granularity": "pair", "collect": ("norms",), "sentences": 7},
        {"pairs_per_target": 5},
        {"mode": "outputs"},
        {"mode": "outputs", "beams": 3, "sentences": 3},
    ],
)
def test_settings_are_those_of_the_statistics(tiny, tokenizer, text, tmp_path, how):
    statistics = calibrate(tiny, tokenizer, text, DIRECTIONS, folder=tmp_path / "first", **how)
    masks = plan(statistics, kept=0.5)
    again = calibrate_again(statistics, tiny, tokenizer, text, masks=masks, folder=tmp_path / "again")
    assert again.signature == {**statistics.signature, "masks": masks.signature}
    assert (again.items, again.collect, again.granularity) == (
        statistics.items,
        statistics.collect,
        statistics.granularity,
    )
    if how.get("granularity") != "pair":
        for stack in again.spec.stacks:
            for key in again.keys(stack.name):
                table, kept = again.table(stack.name, key), masks.masks[stack.name][key]
                for layer, ids in enumerate(kept):
                    dropped = np.setdiff1d(np.arange(stack.experts), ids)
                    assert not (table["first"] + table["second"])[:, layer, dropped].any()
                    assert not table["p_all"][:, layer, dropped].any()


def test_another_text_is_refused(tiny, tokenizer, text, tmp_path):
    statistics = calibrate(tiny, tokenizer, text, DIRECTIONS, folder=tmp_path / "first")
    other = tmp_path / "other"
    other.mkdir()
    for code in text.languages:
        lines = text.lines(code) if code != "fra_Latn" else text.lines(code)[::-1]
        (other / f"{code}.txt").write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(UsageError, match="lines in fra_Latn differ"):
        calibrate_again(
            statistics,
            tiny,
            tokenizer,
            ParallelText.open(other),
            masks=plan(statistics, kept=0.5),
            folder=tmp_path / "again",
        )


def test_only_directions_that_the_masks_cover_are_observed(tiny, tokenizer, text, tmp_path):
    statistics = calibrate(tiny, tokenizer, text, DIRECTIONS, folder=tmp_path / "first")
    masks = plan(statistics, kept=0.5, languages=("eng_Latn", "deu_Latn"))
    again = calibrate_again(statistics, tiny, tokenizer, text, masks=masks, folder=tmp_path / "again")
    assert again.items == ("deu_Latn-eng_Latn", "eng_Latn-deu_Latn")


def test_a_mask_that_no_direction_uses_is_refused(tiny, tokenizer, text, tmp_path):
    statistics = calibrate(tiny, tokenizer, text, DIRECTIONS[:3], folder=tmp_path / "first")  # none from French
    masks = plan(statistics, kept=0.5, languages=("eng_Latn", "fra_Latn"))
    with pytest.raises(UsageError, match="none between their languages uses"):
        calibrate_again(statistics, tiny, tokenizer, text, masks=masks, folder=tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("name", ["sentences", "mode"])
def test_statistics_that_do_not_say_how_they_were_made_are_refused(tiny, tokenizer, text, tmp_path, name):
    made = calibrate(tiny, tokenizer, text, DIRECTIONS, folder=tmp_path / "first")
    signature = {key: value for key, value in made.signature.items() if key != name}
    statistics = ExpertStatistics(made.spec, made.granularity, made.tables, items=made.items, signature=signature)
    with pytest.raises(UsageError, match=f"but lack {name}"):
        calibrate_again(statistics, tiny, tokenizer, text, masks=plan(made, kept=0.5), folder=tmp_path / "again")
