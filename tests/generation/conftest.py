import pytest
import torch

from nllb_prune.corpus import ParallelText
from nllb_prune.generation.loop import Sentence
from nllb_prune.model.blocks import DecoderCall, NoPast, blocks_of, encode, hide, keep_by_token
from nllb_prune.model.loading import load_model
from nllb_prune.model.routing import routing_of
from nllb_prune.model.source import embedded_text, load_tokenizer
from nllb_prune.tokenization import encode as tokenize
from nllb_prune.tokenization import language_id


@pytest.fixture(scope="session")
def model():
    return load_model("mini")


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer("mini")


@pytest.fixture
def blocks(model):
    """Of the model; a new object each time, so that a test may change its tokens."""
    return blocks_of(model)


@pytest.fixture(scope="session")
def masks_by_stack(model):
    """Three masks of each stack ``(sparse layers, experts)``; the last has the values of the first."""
    generator = torch.Generator().manual_seed(11)
    found = {}
    for stack in routing_of(model).spec.stacks:
        shape = (len(stack.layers), stack.experts)
        ranks = [torch.rand(shape, generator=generator).argsort(-1) for _ in range(2)]
        found[stack.name] = [ranks[0] < 16, ranks[1] < 6, ranks[0] < 16]
    return found


@pytest.fixture(scope="session")
def mixed_sentences(model, tokenizer, masks_by_stack):
    """Sentences of any direction, length, limit and masks, encoder and decoder apart."""
    text = ParallelText.open(embedded_text(), "test")
    generator = torch.Generator().manual_seed(12)

    def draw(count):
        return int(torch.randint(count, (), generator=generator))

    sentences = []
    for key in range(32):
        source, target = (text.languages[draw(len(text.languages))] for _ in range(2))
        words = " ".join(text.lines(source)[draw(200)] for _ in range(1 + (draw(5) == 0)))
        keep = {stack: masks[n] for stack, masks in masks_by_stack.items() if (n := draw(5)) < len(masks)}
        sentences.append(
            Sentence(
                key=key,
                source=tokenize(tokenizer, [words], source)[0],
                language=language_id(tokenizer, target),
                limit=2 + draw(30),
                keep=keep,
            )
        )
    return sentences


def _forced(blocks, sentence, tokens):
    source = torch.tensor([list(sentence.source)])
    target = torch.tensor([[blocks.start, sentence.language, *tokens]])
    length = target.shape[1]
    keep = {stack: mask.unsqueeze(0) for stack, mask in sentence.keep.items()}
    encoded = encode(blocks, source, keep.get("encoder"))
    blocks.reserve(length)
    states = blocks.embed_target(target, torch.arange(length))
    call = DecoderCall(
        past=NoPast(),
        visible=hide(torch.ones(1, 1, length, length, dtype=torch.bool).triu(1), states),
        source_visible=encoded.visible,
        positions=None,
        keep=keep_by_token(keep["decoder"], length=length) if "decoder" in keep else None,
    )
    for block in blocks.decoder:
        states = block(states, block.source(encoded.memory), call)
    return blocks.logits(states)[0, 1:].float().log_softmax(-1)


@pytest.fixture(scope="session")
def forced():
    """(blocks, sentence, tokens) -> log-probabilities of each token and of what follows ``(tokens + 1, vocabulary)``.

    In one pass over the whole target, so without cache, beams or other rows.
    """
    return torch.inference_mode()(_forced)


@pytest.fixture(scope="session")
def log_probability(forced):
    """(blocks, sentence, tokens, ended) -> log-probability of a hypothesis in one pass."""

    def total(blocks, sentence, tokens, ended):
        taken = [*tokens, blocks.end] if ended else list(tokens)
        table = forced(blocks, sentence, tokens)
        return float(table[torch.arange(len(taken)), taken].double().sum())

    return total
