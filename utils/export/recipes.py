"""Objects written as JSON and built again from it: a model's constructor call, its configs, functions of torch.

Imports torch alone: exported folders of transformers hold a copy of this file. Finding out what an object was built from is
for `recovery`.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch

CALL, FIELDS, TUPLE, TORCH = "$call", "$fields", "$tuple", "$torch"
"""Marks of what JSON has no word for; a mapping of the user's own never has a key that begins with "$"."""


def build(recipe: Any, classes: Mapping[str, Any]) -> Any:
    """Build what a recipe describes.

    Args:
        recipe: JSON. `{"$call": "GPT", "positional": […], "arguments": {…}}` calls a class; `{"$fields": "Settings",
            "values": {…}}` fills an instance without calling its constructor; `{"$tuple": […]}` and
            `{"$torch": "nn.functional.gelu"}` are a tuple and a name below torch. All else stands for itself.
        classes: name → class, for the first two.

    Example:
        >>> build({"$call": "Linear", "arguments": {"in_features": 4, "out_features": 2}}, {"Linear": torch.nn.Linear})
    """
    if isinstance(recipe, list):
        return [build(item, classes) for item in recipe]
    if not isinstance(recipe, Mapping):
        return recipe
    if CALL in recipe:
        positional = [build(item, classes) for item in recipe.get("positional", ())]
        named = {name: build(item, classes) for name, item in recipe["arguments"].items()}
        return classes[recipe[CALL]](*positional, **named)
    if FIELDS in recipe:
        cls = classes[recipe[FIELDS]]
        made = cls.__new__(cls)
        made.__dict__.update({name: build(item, classes) for name, item in recipe["values"].items()})
        return made
    if TUPLE in recipe:
        return tuple(build(item, classes) for item in recipe[TUPLE])
    if TORCH in recipe:
        return operator.attrgetter(recipe[TORCH])(torch)
    return {name: build(item, classes) for name, item in recipe.items()}


def apply_changes(model: torch.nn.Module, changes: Mapping[str, Mapping[str, Any]], classes: Mapping[str, Any]) -> None:
    """Set attributes that differ from what the constructor set: module's name → attribute → recipe."""
    for path, attributes in changes.items():
        module = model.get_submodule(path)
        for name, recipe in attributes.items():
            setattr(module, name, build(recipe, classes))
