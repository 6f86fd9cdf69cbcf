"""Read and write mappings as YAML. Unlike in PyYAML, dates stay text and 1e-4 is a number."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from elbocli.files.reading import read_text, reading
from elbocli.files.records import JSON

FLOAT = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+|[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)")
INT = re.compile(r"[-+]?[0-9]+")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0].endswith((":null", ":bool"))]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, JSON]:
        found: dict[str, JSON] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str) or key in found:
                wrong = "given twice; delete one" if isinstance(key, str) else "not text; quote it"
                raise ValueError(f"line {key_node.start_mark.line + 1}: key {key!r} is {wrong}")
            found[key] = self.construct_object(value_node, deep=True)
        return found


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # Outside double quotes, PyYAML writes these line breaks unescaped, and YAML reads them as spaces.
        style = '"' if re.search("[\x85\u2028\u2029]", data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Dumper.add_representer(str, _Dumper.represent_str)

for _class in (_Loader, _Dumper):
    for _tag, _form in (("tag:yaml.org,2002:float", FLOAT), ("tag:yaml.org,2002:int", INT)):
        _class.add_implicit_resolver(_tag, re.compile(f"^(?:{_form.pattern})$"), list("-+.0123456789"))


def parse_yaml(text: str, name: object) -> dict[str, Any]:
    """Parse a mapping from YAML. name: the file, for messages. Raises FormatError."""
    with reading(f"{name}: not usable YAML"):
        value = yaml.load(text, Loader=_Loader)
        if not isinstance(value, dict):
            raise ValueError("expected lines of the form 'key: value'")
        return value


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping. Raises FormatError, DataError."""
    return parse_yaml(read_text(path), path)


def yaml_text(value: Mapping[str, object]) -> str:
    """Return a mapping as YAML, with keys in their given order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
