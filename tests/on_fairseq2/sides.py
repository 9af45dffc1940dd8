"""The same sentences through a model of transformers' side and through a plain one of fairseq2."""

from dataclasses import dataclass

import torch

from nllb_prune.model.source import embedded_text
from nllb_prune.tokenization import encode, pad

EMBEDDED_LANGUAGES = tuple(sorted(file.stem for file in (embedded_text() / "dev").iterdir()))
CPU = torch.device("cpu")


def lines(code, split="dev"):
    return tuple((embedded_text() / split / f"{code}.{split}").read_text(encoding="utf-8").splitlines())


@dataclass(frozen=True)
class Pairs:
    """Sentences and their translations, as transformers numbers tokens."""

    sources: list[list[int]]
    prefixes: list[list[int]]
    """What a decoder is fed: `</s>`, the language, words."""

    @classmethod
    def of(cls, tokenizer, *, source="eng_Latn", target="deu_Latn", count=20, split="dev"):
        texts = {code: lines(code, split)[:count] for code in (source, target)}
        targets = encode(tokenizer, texts[target], target)
        return cls(encode(tokenizer, texts[source], source), [[2, *ids[:-1]] for ids in targets])

    @property
    def source_ids(self):
        """``(rows, longest source)``"""
        return pad(self.sources, 1)

    @property
    def prefix_ids(self):
        """``(rows, longest prefix)``"""
        return pad(self.prefixes, 1)

    def row(self, number):
        return Pairs([self.sources[number]], [self.prefixes[number]])


def transformers_states(model, pairs):
    """Return the encoder's output and the logits at the tokens, padding left out: ``(tokens, ...)`` each."""
    source, prefix = pairs.source_ids, pairs.prefix_ids
    mask = source.ne(1)
    with torch.inference_mode():
        memory = model.get_encoder()(input_ids=source, attention_mask=mask).last_hidden_state
        logits = model(input_ids=source, attention_mask=mask, decoder_input_ids=prefix, use_cache=False).logits
    return memory[mask], logits[prefix.ne(1)]


def fairseq2_states(model, pairs):
    """As `transformers_states`, of a model that fairseq2 loaded, with logits in the order of transformers."""
    from fairseq2.nn import BatchLayout

    from nllb_prune.on_fairseq2.vocabulary import columns_for_transformers, ids_for_fairseq2

    source, prefix = ids_for_fairseq2(pairs.source_ids), ids_for_fairseq2(pairs.prefix_ids)
    source_layout = BatchLayout.of(source, [len(ids) for ids in pairs.sources])
    prefix_layout = BatchLayout.of(prefix, [len(ids) for ids in pairs.prefixes])
    with torch.inference_mode():
        memory = model.encoder(*model.encoder_frontend(source, source_layout))
        logits = columns_for_transformers(model(source, source_layout, prefix, prefix_layout))
    return memory[pairs.source_ids.ne(1)], logits[pairs.prefix_ids.ne(1)]


def assert_same(model, reference, pairs):
    """Hold a model of fairseq2, with its fused attention, against one of transformers.

    Float32 rounds both sides alike: of `mini` each is 7e-6 from the logits, up to 14, that fairseq2 has in float64.
    """
    (memory, logits), (their_memory, their_logits) = (
        fairseq2_states(model, pairs),
        transformers_states(reference, pairs),
    )
    torch.testing.assert_close(memory, their_memory, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits, their_logits, rtol=1e-5, atol=1e-5)


def assert_equal(model, reference, pairs):
    """Hold a model of fairseq2, with the attention that the verbs give it, against one of transformers: bit by bit."""
    for ours, theirs in zip(fairseq2_states(model, pairs), transformers_states(reference, pairs), strict=True):
        assert torch.equal(ours, theirs)


def eager(model):
    """Give a model of fairseq2 the attention that the verbs give it."""
    from nllb_prune.on_fairseq2.attention import use_eager_attention

    use_eager_attention(model)
    return model


def load_by_card(folder_or_name, *, dtype=torch.float32, **card):
    """Load what `card_of` describes as fairseq2 does, without the surface that the verbs use."""
    from fairseq2.assets import AssetCard
    from fairseq2.models.hub import load_model

    from nllb_prune.on_fairseq2.card import card_of

    fields = card_of(folder_or_name) | card
    return load_model(AssetCard(str(fields["name"]), fields), device=CPU, dtype=dtype).eval()
