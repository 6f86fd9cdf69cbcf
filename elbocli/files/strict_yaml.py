"""YAML without surprises: what JSON has and no more, no duplicate keys, and 1e-4 is a number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from elbocli.errors import FormatError
from elbocli.files.reading import read_text


class _Loader(yaml.SafeLoader):
    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """Find the type of a word as YAML does; but 1_000 is text, as it is no number anywhere else in elbo."""
        found = super().resolve(kind, value, implicit)
        numeric = kind is yaml.ScalarNode and found.rpartition(":")[2] in ("int", "float")
        return "tag:yaml.org,2002:str" if numeric and "_" in value else found


class _Dumper(yaml.SafeDumper):
    pass


NUMBER = re.compile(
    r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*\.[0-9_]*|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$|^[-+]\.(?:inf|Inf|INF)$"
)
for _kind in (_Loader, _Dumper):  # text that looks like a number must be quoted when written
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+0123456789."))


def _mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    seen: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str) or key in seen:
            wrong = "given twice" if isinstance(key, str) else "not text"
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is {wrong}", key_node.start_mark)
        seen[key] = loader.construct_object(value_node, deep=deep)
    return seen


_Loader.yaml_constructors = {
    tag: make
    for tag, make in _Loader.yaml_constructors.items()
    if str(tag).rpartition(":")[2] not in ("timestamp", "binary", "set", "omap", "pairs")
}
_Loader.yaml_implicit_resolvers = {  # a date is text
    first: [pair for pair in pairs if not pair[0].endswith(":timestamp")]
    for first, pairs in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load(text: str, name: str) -> dict[str, Any]:
    """The mapping that a YAML text holds. Raises FormatError, with the line, for anything else."""
    try:
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise FormatError(f"{name}: not usable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        found = {"NoneType": "nothing", "list": "a list", "str": "a line of text"}.get(
            type(value).__name__, "one value"
        )
        raise FormatError(f"{name}: expected 'key: value' lines, found {found}")
    return value


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises FormatError."""
    return load(read_text(path, "a settings file"), str(path))


def dump(value: dict[str, Any]) -> str:
    """Plain block YAML in the order given."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text if "\x85" not in text else yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=100)
