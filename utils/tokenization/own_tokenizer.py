"""A person's own tokenizer, in whatever form they have it, made ready for the model's rows. Trains and downloads nothing.

No code from a folder is run: tokenizer.json, vocab.json with merges.txt and SentencePiece models are data, and the class
that a tokenizer_config.json names is not looked up.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import TokenizerError
from utils.tokenization.sentencepiece_model import build_backend, read_model
from utils.tokenization.tokenizer_files import read_backend, read_config, wrap

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

WHAT_WORKS = (
    "a folder or file with tokenizer.json, a SentencePiece .model, or vocab.json beside merges.txt; a "
    "tokenizers.Tokenizer; or a Hugging Face tokenizer"
)

_END_NAMES = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "[EOS]", "<|eot|>", "[SEP]")
_PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>")
_OTHER_NAMES = {"unk_token": ("<unk>", "[UNK]"), "bos_token": ("<s>", "<bos>", "<|begin_of_text|>", "[BOS]")}
"""What special tokens are called; looked for where a tokenizer does not say which it uses."""


def load_own(source: Any) -> PreTrainedTokenizerBase:
    """Read a tokenizer.

    Args:
        source: see `WHAT_WORKS`. Tokenizers of the Hugging Face library are returned as they are.

    Raises:
        TokenizerError: it is none of these, or its files cannot be read.
    """
    if isinstance(source, (str, Path)):
        return _from_path(Path(source).expanduser())
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

    if isinstance(source, PreTrainedTokenizerBase):
        return source
    if isinstance(source, Tokenizer):
        return wrap(source, _named_by_habit(source, {}))
    raise TokenizerError(f"A {type(source).__name__} is no tokenizer. What works: {WHAT_WORKS}.")


def complete_specials(tokenizer: PreTrainedTokenizerBase, rows: int) -> tuple[PreTrainedTokenizerBase, tuple[str, ...]]:
    """Give a tokenizer what training needs and it lacks: end of text, and padding that is another token.

    A token that the vocabulary already holds under a usual name is taken; otherwise one is added where the rows have room.
    Without room for padding the tokenizer has none, which packed text does not need.

    Args:
        tokenizer: left as it is; where something changes, a copy is changed.
        rows: embedding rows of the model.

    Returns:
        The tokenizer, and what was changed, a sentence each.

    Raises:
        TokenizerError: there is no end-of-text token and no row for one.
    """
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    if end is not None and pad is not None and pad != end:
        return tokenizer, ()
    changed = copy.deepcopy(tokenizer)
    notes = []
    if end is None:
        notes.append(_give(changed, "eos_token", _END_NAMES, rows, taken=set()))
        if not notes[0]:
            raise TokenizerError(
                f"The tokenizer has no end-of-text token, and its {len(tokenizer):,} entries leave none of the model's "
                f"{rows:,} rows for one: documents could not be told apart. Set eos_token to an entry that it has, or give "
                "the model one more row."
            )
    if pad is None or pad == changed.eos_token_id:
        said = _give(changed, "pad_token", _PAD_NAMES, rows, taken={changed.eos_token})
        if not said and pad is not None:
            changed.pad_token = None
            said = (
                "padding was the end-of-text token; a model would never learn to stop, so there is no padding token now"
            )
        notes.append(said)
    return changed, tuple(filter(None, notes))


def _give(tokenizer: PreTrainedTokenizerBase, role: str, names: tuple[str, ...], rows: int, taken: set[Any]) -> str:
    """Take an entry of a usual name for a role, or add one; "" where neither is possible."""
    vocabulary = tokenizer.get_vocab()
    what = {"eos_token": "end-of-text", "pad_token": "padding"}[role]
    found = next((name for name in names if name in vocabulary and name not in taken), None)
    if found is not None:
        tokenizer.add_special_tokens({role: found})
        return f"the entry {found} is taken as {what} token"
    if max(vocabulary.values(), default=-1) + 1 >= rows:
        return ""
    tokenizer.add_special_tokens({role: names[0]})
    return f"{names[0]} was added as {what} token with id {tokenizer.convert_tokens_to_ids(names[0])}"


def _from_path(path: Path) -> PreTrainedTokenizerFast:
    if path.is_dir():
        return _from_folder(path)
    if not path.is_file():
        raise TokenizerError(f"There is no tokenizer at {path}. What works: {WHAT_WORKS}.")
    folder = path.parent
    if path.suffix == ".model":
        return _from_sentencepiece(path, folder)
    if path.name in ("vocab.json", "merges.txt"):
        return _from_pairs(folder)
    if path.suffix == ".json":
        return _wrapped(read_backend(path), folder)
    raise TokenizerError(f"{path.name} is no file of a tokenizer that can be read. What works: {WHAT_WORKS}.")


def _from_folder(folder: Path) -> PreTrainedTokenizerFast:
    if (folder / "tokenizer.json").is_file():
        return _wrapped(read_backend(folder / "tokenizer.json"), folder)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _from_pairs(folder)
    models = sorted(folder.glob("*.model"))
    if len(models) == 1:
        return _from_sentencepiece(models[0], folder)
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:10]) or "nothing"
    problem = f"holds {len(models)} .model files; name the one that is meant" if models else f"holds {found}"
    raise TokenizerError(f"The folder {folder} {problem}. What works: {WHAT_WORKS}.")


def _from_sentencepiece(path: Path, folder: Path) -> PreTrainedTokenizerFast:
    model = read_model(path)
    try:
        backend = build_backend(model)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise TokenizerError(f"{path.name} cannot be rebuilt as a tokenizer: {error}.") from error
    return wrap(backend, {**model.specials(), **_said(read_config(folder))})


def _from_pairs(folder: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE in two files, as GPT-2 was published."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    try:
        model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    except Exception as error:  # the tokenizers library raises plain Exception
        raise TokenizerError(f"vocab.json and merges.txt in {folder} cannot be read: {error}.") from error
    backend = Tokenizer(model)
    missing = set(pre_tokenizers.ByteLevel.alphabet()) - set(backend.get_vocab())
    if missing:
        raise TokenizerError(
            f"vocab.json in {folder} lacks {len(missing)} of the 256 byte symbols: it is not byte-level, and how it cuts "
            "words stands in neither file. Pass its tokenizer.json."
        )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return _wrapped(backend, folder)


def _wrapped(backend: Tokenizer, folder: Path) -> PreTrainedTokenizerFast:
    return wrap(backend, _named_by_habit(backend, _said(read_config(folder))))


def _said(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if value is not None}


def _named_by_habit(backend: Tokenizer, config: dict[str, Any]) -> dict[str, Any]:
    """The config, and by their usual names the special tokens that it does not name but the vocabulary holds."""
    known = backend.get_vocab(with_added_tokens=True)
    roles = {"eos_token": _END_NAMES[:-1], "pad_token": _PAD_NAMES, **_OTHER_NAMES}
    found = {role: next((name for name in names if name in known), None) for role, names in roles.items()}
    return {**{role: name for role, name in found.items() if name is not None}, **config}
