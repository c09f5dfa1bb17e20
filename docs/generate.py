"""Writes docs/studies.md: every key of a study, out of the dataclasses and the comments beside their fields.

    python docs/generate.py

`make docs` does it; `make test` says when it is forgotten.
"""

import ast
import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nni_bertnas import config
from nni_bertnas.profiles import PROFILES
from nni_bertnas.search import strategies
from nni_bertnas.search.strategies import STRATEGIES

TARGET = Path(__file__).with_name("studies.md")
HEAD = """\
# The keys of a study

A study is one YAML file with one compression job. What it does not say has its default; unknown keys, wrong types,
values out of range, names of no table's row and settings that do not go together are reported all at once, each with
its dotted path (`bertnas validate STUDY`). The resolved study, every default filled in, lies beside each result.

**Profiles.** `profile: tiny`, `small` or `base` in a study stands for a width, a rank of the embeddings, depths and a
budget; what the study says itself goes before it.

PROFILES
What they come to, for a MiniLM and for a BERT of 12 layers: [Stages and doors](stages.md#profiles).

This page is written by `make docs` from the comments in `nni_bertnas/config/` and `nni_bertnas/search/strategies.py`.
"""


def fields_of(kind: type) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and comment of every field that a class itself declares."""
    source = inspect.getsource(kind)
    lines = source.splitlines()
    (tree,) = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    for node in tree.body:
        if not isinstance(node, ast.AnnAssign):
            continue
        assert isinstance(node.target, ast.Name) and node.end_lineno is not None
        _, _, comment = lines[node.end_lineno - 1].partition("  # ")
        above, number = [], node.lineno - 2
        while number >= 0 and lines[number].strip().startswith("#"):
            above.insert(0, lines[number].strip().removeprefix("#").strip())
            number -= 1
        yield node.target.id, spell_type(node.annotation), default_of(kind, node.target.id), " ".join([*above, comment])


def spell_type(node: ast.expr) -> str:
    """A type as people read it: `Annotated` without its limits, which follow in brackets."""
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Annotated":
        assert isinstance(node.slice, ast.Tuple)
        inner, *limits = node.slice.elts
        words = [f"{one.arg} {ast.unparse(one.value)}" for call in limits if isinstance(call, ast.Call)
                 for one in call.keywords]  # fmt: skip
        return spell_type(inner) + (f" ({', '.join(words)})" if words else "")
    if isinstance(node, ast.BinOp):
        return f"{spell_type(node.left)} or {spell_type(node.right)}"
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal":
        return ast.unparse(node.slice).strip("()").replace("'", "").replace(", ", " / ")
    if isinstance(node, ast.Subscript):
        assert isinstance(node.value, ast.Name)
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return f"{node.value.id} of {', '.join(map(spell_type, inner))}"
    names = {
        "None": "null", "str": "text", "PathText": "path",
        "int": "whole number", "float": "number", "bool": "true / false",
        "Positive": "whole number (ge 1)", "Natural": "whole number (ge 0)", "Rate": "number (gt 0, le 1)",
        "Weight": "number (ge 0)", "Switch": "off / offline / online", "dict": "mapping", "Any": "anything",
    }  # fmt: skip
    text = ast.unparse(node)
    return names.get(text, f"section [{text}](#{text.lower()})" if text.endswith("Settings") else text)


def default_of(kind: Any, name: str) -> str:
    """A field's default as YAML would say it."""
    (field,) = (one for one in dataclasses.fields(kind) if one.name == name)
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if value is dataclasses.MISSING or (isinstance(value, object) and type(value).__name__ == "PydanticUndefinedType"):
        return "needed"
    if hasattr(value, "default"):  # pydantic's own field
        return default_text(value.default_factory() if value.default_factory else value.default)
    return default_text(value)


def default_text(value: Any) -> str:
    """A default as YAML would say it."""
    if dataclasses.is_dataclass(value):
        return ""
    if isinstance(value, dict):
        return "`{" + ", ".join(f"{key}: {one}" for key, one in value.items()) + "}`"
    if value is None or isinstance(value, bool):
        return "`null`" if value is None else f"`{str(value).lower()}`"
    return f"`{value}`"


def table(kind: type) -> str:
    """One class as a table."""
    rows = ["| key | type | default | |", "|---|---|---|---|"]
    rows += [
        f"| `{name}` | {' | '.join(part.replace('|', '/') for part in parts)} |" for name, *parts in fields_of(kind)
    ]
    return "\n".join(rows)


def section(kind: type, title: str) -> str:
    """One class with its heading."""
    about = inspect.getdoc(kind) or ""
    bases = [base for base in kind.__bases__ if dataclasses.is_dataclass(base)]
    own = table(kind) if any(True for _ in fields_of(kind)) else "It has no settings of its own."
    also = "".join(f"\nAlso all of [{base.__name__}](#{base.__name__.lower()}).\n" for base in bases)
    return f"## {title}\n\n{about}\n{also}\n{own}\n"


def profile_table() -> str:
    """What every profile says."""
    rows = ["| profile | what it says |", "|---|---|"]
    for name, sections in PROFILES.items():
        said = (f"`{part}.{key}: {value}`" for part, fields in sections.items() for key, value in fields.items())
        rows.append(f"| `{name}` | {', '.join(said)} |")
    return "\n".join(rows) + "\n"


def main() -> str:
    """The page."""
    parts = [HEAD.replace("PROFILES", profile_table()), section(config.Study, "Study")]
    named = {field.type.__name__: name for name, field in config.Study.__dataclass_fields__.items()
             if isinstance(field.type, type) and field.type.__name__.endswith("Settings")}  # fmt: skip
    for name, kind in vars(config).items():
        if name.endswith("Settings"):
            where = f"section `{named[name]}`" if name in named else "a part of other sections"
            parts.append(section(kind, name).replace("\n\n", f"\n\n*{where}*\n\n", 1))
    users: dict[str, list[str]] = {}
    for name, row in STRATEGIES.items():
        users.setdefault(row.options.__name__, []).append(f"`{name}` ({row.source})")
    for name, kind in vars(strategies).items():
        if name.endswith("Options") and name != "Options":
            of = ", ".join(users.get(name, [])) or "others below"
            text = section(kind, name).replace("\nAlso all of [Options](#options).\n", "")
            parts.append(text.replace("\n\n", f"\n\n*section `cell.options` with `cell.strategy`:* {of}\n\n", 1))
    return "\n".join(parts)


if __name__ == "__main__":
    TARGET.write_text(main(), encoding="utf-8")
