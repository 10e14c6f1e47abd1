"""Loading: from a gist, a folder or a file to an `nn.Module`, read before it is run.

The rooms: `gist` fetches, `code_review` reads without running, `model_config` says what config.json knows, `sources`
makes importable modules of source text, `constructor` calls a class the way it wants, `model_loader` is the walk through
all of them. How a model is called afterwards belongs to `utils.adapters`. Importing this package imports no torch.
"""

from __future__ import annotations
