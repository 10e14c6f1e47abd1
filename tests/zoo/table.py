"""All entries of the zoo, and the same under their names."""

from __future__ import annotations

from tests.zoo import answers, arguments, calls, exports, families, hugging_face, masks, outputs
from tests.zoo.entry import Entry

ENTRIES: list[Entry] = [
    entry
    for module in (arguments, calls, masks, outputs, answers, families, exports, hugging_face)
    for entry in module.ENTRIES
]

ZOO: dict[str, Entry] = {entry.name: entry for entry in ENTRIES}
