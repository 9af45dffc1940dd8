"""What a card cannot do: have code run, or pass for another model; and what happens where cards are broken."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nllb_prune.errors import UsageError
from nllb_prune.model.routing import routing_of
from nllb_prune.on_fairseq2.card import card_of, card_text

pytestmark = pytest.mark.fairseq2

CONSOLE = Path(sys.executable).with_name("nllb-prune")


def load(path):
    from nllb_prune.on_fairseq2.loading import load_model

    return load_model(path)


def write(path, **changes):
    path.write_text(card_text(card_of("mini") | {"name": path.stem} | changes))
    return path


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("family", ["nllb_moe", "nllb"])
def test_no_code_is_run_whatever_the_card_says(family, tmp_path):
    torch.save({"encoder.layer_norm.weight": Code(tmp_path / "ran")}, tmp_path / "evil.pt")
    config = {"model_dim": 16} if family == "nllb" else card_of("mini")["model_config"]
    card = write(tmp_path / "evil.yaml", model_family=family, checkpoint="evil.pt", restrict=False, model_config=config)
    with pytest.raises(
        UsageError, match=r"holds code, not weights alone: `posix.system`. Nothing of it was run"
    ) as said:
        load(card)
    assert "\n" not in str(said.value)
    assert not (tmp_path / "ran").exists()


def test_fairseq2_itself_runs_none_either(tmp_path):
    from fairseq2.assets import AssetCardError
    from fairseq2.models import load_model

    from nllb_prune.on_fairseq2.card_reading import asset_card

    torch.save({"encoder.layer_norm.weight": Code(tmp_path / "ran")}, tmp_path / "evil.pt")
    card = asset_card(write(tmp_path / "evil.yaml", checkpoint="evil.pt", restrict=False))
    with pytest.raises(AssetCardError):
        load_model(card, device=torch.device("cpu"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("change", [{"expert_output_scale": 0.05}, {"scale_embedding": False}, {"top_k": 1}], ids=str)
def test_a_card_that_says_otherwise_is_of_another_model(change, tmp_path):
    config = card_of("mini")["model_config"]
    usual = load(write(tmp_path / "usual.yaml"))
    other = load(write(tmp_path / "other.yaml", model_config=config | change))
    assert routing_of(usual).identity == routing_of(load("mini")).identity != routing_of(other).identity


def test_dropout_is_of_training(tmp_path):
    config = card_of("mini")["model_config"]
    other = load(write(tmp_path / "other.yaml", model_config=config | {"dropout_p": 0.1}))
    assert routing_of(other).identity == routing_of(load("mini")).identity


def test_a_card_of_a_few_experts_is_a_pruned_model(tmp_path):
    """It can be evaluated as an export can: what it holds is the whole of it."""
    from nllb_prune.model.facts import facts_of

    few = [[0, 1, 9], list(range(64)), [5, 6]]
    config = card_of("mini")["model_config"] | {"encoder_experts": few}
    model = load(write(tmp_path / "few.yaml", model_config=config))
    state = routing_of(model)
    assert [len(ids) for ids in state.pruning.kept["encoder"]] == [3, 64, 2]
    assert facts_of(model).identity == state.identity != routing_of(load("mini")).identity


def test_too_few_positions(tmp_path):
    config = card_of("mini")["model_config"] | {"max_seq_len": 10}
    with pytest.raises(UsageError, match=r"`max_seq_len` of the asset card `short` must be 512 or more.*10 instead"):
        load(write(tmp_path / "short.yaml", model_config=config))


@pytest.mark.parametrize(
    "cards", [{"bad.yaml": "name: [a\n"}, {"a.yaml": "name: twice\n", "b.yaml": "name: twice\n"}], ids=["yaml", "twice"]
)
@pytest.mark.parametrize("model", ["mini", "nllb-prune-mini", "none"])
def test_other_cards_that_are_broken(cards, model, tmp_path):
    for name, text in cards.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [CONSOLE, "translate", model, "a", "--source", "en", "--target", "de", "--backend", "fairseq2"],
        env={**os.environ, "FAIRSEQ2_USER_ASSET_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert str(tmp_path) in done.stderr


def test_a_new_model_has_finite_weights():
    """As fairseq2 makes one to be trained; it is nobody's, so it has no fingerprint."""
    from fairseq2.models.hub import load_model  # noqa: F401 - initialises the library

    from nllb_prune.on_fairseq2.config import NllbMoeConfig
    from nllb_prune.on_fairseq2.hub import get_nllb_moe_model_hub

    config = NllbMoeConfig(
        model_dim=16,
        vocab_size=50,
        num_encoder_layers=2,
        num_decoder_layers=2,
        num_encoder_attn_heads=2,
        num_decoder_attn_heads=2,
        encoder_ffn_inner_dim=8,
        decoder_ffn_inner_dim=8,
        num_experts=4,
        encoder_sparse_layers=[1],
        decoder_sparse_layers=[0, 1],
        decoder_experts=[[0, 3], [1, 2, 3]],
    )
    for bits in (None, 8):
        config.expert_bits = bits
        for dtype in (torch.float32, torch.bfloat16):
            model = get_nllb_moe_model_hub().create_new_model(config, device=torch.device("cpu"), dtype=dtype)
            assert all(p.isfinite().all() for p in model.parameters() if p.is_floating_point())
            assert model.get_submodule("decoder.layers.0.ffn.sparse.bank").slot_of.tolist() == [0, -1, -1, 1]
            assert routing_of(model).spec.fingerprint is None
    assert model.get_parameter("encoder.layers.1.ffn.sparse.bank.fc1_weight").dtype == torch.int8
