"""Training: from text and an adapted model to a trained one, on Lightning, and what is measured on the way."""
