"""Whether models of fairseq2 do what those of transformers do: `python -m eval.fairseq2`, see README.md."""
