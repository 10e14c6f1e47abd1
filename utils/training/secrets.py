"""Recognises keys, tokens and passwords in text, so that no file and no message ever holds one. Stores nothing."""

from __future__ import annotations

import re

_KINDS: tuple[tuple[str, str], ...] = (
    ("a Hugging Face token", r"\bhf_[A-Za-z0-9]{30,}"),
    ("a GitHub token", r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})"),
    ("a Weights & Biases key", r"\bwandb_v\d+_[A-Za-z0-9_]{20,}"),
    ("a Weights & Biases key (40 hex digits; of a commit 12 do)", r"(?<![0-9A-Za-z])[0-9a-f]{40}(?![0-9A-Za-z])"),
    ("an API key", r"\bsk[-_](?=[\w-]*\d)(?=[\w-]*[A-Z])[A-Za-z0-9_-]{20,}"),
    ("an AWS access key", r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    ("a Google API key", r"\bAIza[0-9A-Za-z_-]{30,}"),
    ("a Slack token", r"\bxox[abprs]-[0-9A-Za-z-]{10,}"),
    ("a GitLab token", r"\bglpat-[0-9A-Za-z_-]{16,}"),
    ("a signed web token", r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+"),
    ("a private key", r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    ("a URL with credentials", r"\b[A-Za-z][A-Za-z0-9+.-]*://(?:[^\s/@?#:]*:[^\s/@?#]+|[^\s/@?#:]{16,})@"),
    ("a password", r"(?i)\b\w*(?:password|passwd)[\"']?\s*[=:]\s*[\"']?[^\s\"'&]{4,}"),
    ("a key or token", r"(?i)\b\w*(?:api_?key|token|secret)[\"']?\s*[=:]\s*[\"']?(?=[\w+/=-]*\d)[\w+/=-]{12,}"),
)
_PATTERNS = tuple((kind, re.compile(pattern)) for kind, pattern in _KINDS)

_UNMISTAKABLE = (
    *("a Hugging Face token", "a GitHub token", "an AWS access key", "a Google API key", "a Slack token"),
    *("a GitLab token", "a private key"),
)
"""Kinds that nothing else looks like: a hash, a word of a vocabulary or a variable is none of them."""

_NAMES = re.compile(r"(?i)(?:^|_)(?:key|secret|password|passwd|credentials?)(?:_|$)|api_?key|(?:^|_|access|api)token$")
_TOKENS_OF_TEXT = ("pad", "eos", "bos", "unk", "mask", "sep", "cls", "end", "start", "max", "per", "num", "special")


def where_it_belongs(name: str = "it") -> str:
    """What to do with a secret instead of writing it down.

    Args:
        name: of the setting that would have held it.
    """
    variable = name.upper() if name.isidentifier() and name != "it" else name
    return (
        f"a config never holds a secret; set {variable} in the environment, or under Secrets (the key symbol) in Colab"
    )


def secret_in(text: str) -> str | None:
    """What kind of secret a text seems to hold, such as "a GitHub token"; None for none."""
    return next((kind for kind, pattern in _PATTERNS if pattern.search(text)), None)


def unmistakable_secret_in(text: str) -> str | None:
    """As `secret_in`, for files of code and data: only kinds that nothing else looks like."""
    kinds = ((kind, pattern) for kind, pattern in _PATTERNS if kind in _UNMISTAKABLE)
    return next((kind for kind, pattern in kinds if pattern.search(text)), None)


def names_a_secret(name: str) -> bool:
    """Whether a setting of that name would hold a secret: `wandb_api_key`, `hf_token`, `password`."""
    of_text = name.lower().endswith(tuple(f"{word}_token" for word in _TOKENS_OF_TEXT))
    return _NAMES.search(name) is not None and not of_text


def without_secrets(text: str) -> str:
    """The text with every secret cut down to its first four characters."""
    for _, pattern in _PATTERNS:
        text = pattern.sub(lambda found: f"{found.group()[:4]}…", text)
    return text


def shown(value: object, most: int = 80) -> str:
    """A value for a message: its `repr` without secrets, cut after `most` characters."""
    text = without_secrets(repr(value))
    return text if len(text) <= most else f"{text[:most]}…"
