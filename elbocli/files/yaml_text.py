"""YAML as elbo reads and writes it: text, numbers, lists and mappings; no tags, no aliases, no key twice; 1e-4 is a number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from elbocli.errors import FormatError
from elbocli.files.reading import one_line, read_text

FLOAT = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+|[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)")
INT = re.compile(r"[-+]?[0-9]+")
KINDS = ("null", "bool")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """libyaml's safe loader, in which a date is text and a key has one value."""

    yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0].rpartition(":")[2] in KINDS]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str) or key in found:
                wrong = "given twice" if isinstance(key, str) else "not text"
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key!r} is {wrong}", problem_mark=key_node.start_mark
                )
            found[key] = self.construct_object(value_node, deep=True)
        return found


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


for _class in (_Loader, _Dumper):
    for _kind, _form in (("float", FLOAT), ("int", INT)):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_form.pattern})$"), list("-+.0123456789")
        )


def parse_yaml(text: str, name: object) -> dict[str, Any]:
    """The mapping that a YAML text holds. name: the file, for messages. Raises FormatError, with the line."""
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=_Loader)):
            raise ValueError("an alias, such as *name; write it out")
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise FormatError(f"{name}: not usable YAML: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{name}: expected 'key: value' lines")
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises FormatError, DataError."""
    return parse_yaml(read_text(path, "a settings file"), path)


def yaml_text(value: dict[str, Any]) -> str:
    """Plain block YAML, keys in the order given."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
