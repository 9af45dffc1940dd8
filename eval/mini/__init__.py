"""How the embedded `mini` models are made: text, tokenizer, training, export, card."""
