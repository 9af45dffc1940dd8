"""NLLB mixtures of experts as fairseq2 models: a model family for fairseq2, and fairseq2 as a backend of the verbs.

fairseq2 finds the family by itself (the entry point `fairseq2.extension`): configuration (`config`), factory
(`factory`, out of its standard parts and our sparse layer), checkpoints (`checkpoint_loader`, `conversion`), tokenizer,
asset cards (`card`). The verbs run on what `model` makes of a fairseq2 model.
"""
