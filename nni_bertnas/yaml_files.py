"""YAML that people and other programs write: read without making objects of it, at bounded memory."""

import re
from pathlib import Path
from typing import Any

import yaml

from nni_bertnas.errors import ConfigError

_MOST_BYTES = 1_000_000  # of a file; a long study has 5,000
_MOST_VALUES = 100_000  # of a file, its aliases written out


class _Loader(yaml.SafeLoader):
    """Safe YAML that also reads 1e-4 as a number (YAML 1.1 wants 1.0e-4) and refuses a key given twice.

    Tags that make objects are refused by the class above, aliases that would fill the memory here.
    """

    def get_single_node(self) -> yaml.Node | None:
        """The document, its aliases not yet written out."""
        node: yaml.Node | None = super().get_single_node()
        sizes: dict[int, int] = {}

        def size(one: yaml.Node) -> int:
            if id(one) not in sizes:
                sizes[id(one)] = _MOST_VALUES  # until it is known: an alias of what it stands in
                parts = [] if isinstance(one, yaml.ScalarNode) else one.value
                if isinstance(one, yaml.MappingNode):
                    parts = [part for pair in parts for part in pair]
                sizes[id(one)] = 1 + sum(map(size, parts))
            return sizes[id(one)]

        if node is not None and size(node) > _MOST_VALUES:
            raise yaml.YAMLError(f"its aliases stand for more than {_MOST_VALUES:,} values, or for themselves")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(path: str | Path) -> Any:
    """Read one YAML file.

    Raises:
        ConfigError: It is missing, unreadable, not YAML, or larger than any study.
    """
    try:
        with Path(path).open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise ConfigError(f"{path}: has more than {_MOST_BYTES:,} bytes; give the path of a YAML file of ours")
        return yaml.load(text.decode("utf-8"), Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML file") from error
    except RecursionError:
        raise ConfigError(f"{path}: not valid YAML: nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:  # of numbers and dates that are none, of lists as keys
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
