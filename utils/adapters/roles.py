"""What the name, the annotation and the default of an argument say about its part in a call. Asks no model.

Which values are worth trying for a part is for `guesses`.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass

INPUT_NAMES = (
    "input_ids",
    "idx",
    "tokens",
    "token_ids",
    "input_tokens",
    "inputs",
    "ids",
    "src",
    "x",
    "input",
    "inp",
    "text",
    "data",
)
"""Names of the argument that takes token ids, the usual ones first."""

PIXEL_NAMES = ("pixel_values", "pixels", "images", "image", "img", "imgs")
"""Names of the argument that takes images."""

LABEL_NAMES = ("labels", "targets", "target", "y", "label", "lm_labels", "masked_lm_labels", "gold")
"""Names of arguments that take labels, the usual ones first."""

EMBEDDING_NAMES = ("inputs_embeds", "input_embeds", "inputs_embedding", "embeddings", "embeds", "input_embeddings")
"""Names of arguments that take embedded tokens in place of ids."""

_TEXT = r"(_?(input|inputs|ids|id|tokens?|seqs?|sequences?|sentences?|text|x|in|inp|indices|idx|batch))*"

_PARTS = {
    "embeddings": "|".join(EMBEDDING_NAMES),
    "pixels": "|".join(PIXEL_NAMES),
    "ignored": r".*(head_mask|loss_mask|label_mask|mask_(token|prob|ratio|rate|idx|index|id|labels?)(_ids?)?|pad_(id|idx|index|token).*)",
    "decoder mask": r"(tgt|trg|dec|decoder|target)_.*(mask|pad(ding)?|lens?|lengths?)|(no_?peak|look_?ahead|subsequent)_mask",
    "lengths": r"(.*_)?(lengths|lens)|(src|source|text|input|x|enc|encoder|sent|sentence)_len(gth)?",
    "memory mask": r"(memory|mem|cross|enc_dec|encoder_decoder|dec_enc|encoder|src_tgt)_.*mask.*",
    "mask": r".*mask.*|(key_)?pad(ding)?|keep|valid|is_pad",
    "decoder": rf"(decoder|dec|tgt|trg){_TEXT}|target_?(ids|inputs?|tokens?|seqs?|sequences?|text)|y_in",
    "labels": "|".join(LABEL_NAMES),
    "positions": r"(input_)?pos(itions?|ition_ids?|_ids?)?",
    "segments": r"(token_)?segments?(_ids?|_info|_tokens?|_labels?)?|(token_)?type_ids?|token_types?|langs|lang(uage)?_ids",
    "state": r"(prev_|init_|initial_|last_|rnn_|recurrent_|h_)?(hiddens?|hidden_states?|states?|hx|h0|h|cells?)"
    r"|(kv_|layer_)?(past|caches?|past_key_values?|past_kvs?|mems?|memory|memories)",
    "start": r"start_?(pos|position|index|idx)?|offset|past_length|cache_position|pos_offset|position_offset|cur(rent)?_pos",
    "bag offsets": r"offsets",
    "training": r"(is_)?train(ing)?(_mode)?",
    "teacher forcing": r"(use_)?teacher_forc(ing|e)(_ratio|_prob|_rate)?|tf_ratio",
    "temperature": r"(softmax_)?(temperature|temp|tau)",
    "dropout": r"(\w+_)?drop(out)?(_p|_prob|_rate|_ratio)?",
    "step": r"(global_|train(ing)?_|current_)?(step|iter|iteration|epoch)s?|n_iter",
    "length": r"(seq(uence)?_?|max_?|block_?|context_?)(len|length|size)|length",
    "batch": r"batch_size|bsz|bs|batch",
    "device": r"device",
    "causal": r"(is_|use_)?causal",
    "flag": r"(use|return|needs?|is|do|with|apply|enable|compute|want|average)_\w+|verbose|debug|inference"
    r"|output_(attentions?|hidden_states|weights|scores)",
    "encoder": rf"(encoder|enc|src|source){_TEXT}",
}
"""Part → names that stand for it; the first match counts."""

_WHOLE = {part: re.compile(f"({names})$", re.IGNORECASE) for part, names in _PARTS.items()}


@dataclass(frozen=True)
class Argument:
    """One argument of a `forward`, or one key of the batch that it takes.

    Attributes:
        name: its name.
        required: whether a call without it is refused.
        positional: whether it can only be given by position.
        annotation: its type as text; empty without one.
        default: its default; None also where there is none.
    """

    name: str
    required: bool = True
    positional: bool = False
    annotation: str = ""
    default: object = None

    @classmethod
    def of(cls, parameter: inspect.Parameter) -> Argument:
        """What a signature says about one parameter."""
        empty = parameter.default is parameter.empty
        annotation = parameter.annotation
        text = "" if annotation is parameter.empty else getattr(annotation, "__name__", None) or str(annotation)
        return cls(
            parameter.name,
            empty,
            parameter.kind is parameter.POSITIONAL_ONLY,
            str(annotation) if "[" in str(annotation) or "|" in str(annotation) else text,
            None if empty else parameter.default,
        )

    @property
    def may_be_none(self) -> bool:
        """Whether its type allows None."""
        return bool(re.search(r"Optional\[|\bNone\b", self.annotation))

    @property
    def part(self) -> str:
        """What it is for; "" where neither name nor annotation say it."""
        named = next((part for part, names in _WHOLE.items() if names.match(self.name)), "")
        if self.annotation == "bool" and named not in ("training", "causal", "teacher forcing"):
            return "flag"
        scalar = self.annotation in ("int", "float")
        if scalar and named in ("mask", "positions", "segments", "state", "lengths", "decoder", "labels", "encoder"):
            return {"positions": "start", "lengths": "length"}.get(named, "")
        return named
