"""Tokenizers: trained on a person's text, and proven to fit the model's embedding rows before training begins."""
