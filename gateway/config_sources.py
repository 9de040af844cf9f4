"""Where configuration values come from: a YAML file and the environment. `config` checks them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from marshmallow import fields

from schemas.configuration import SECRETS, SECTIONS

PREFIX = "GATEWAY_"

Document = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """YAML with the scalars of JSON: `no` and `12:30` stay strings, a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {str(key) for key in keys if keys.count(key) > 1}
        if twice:
            problem = f"{', '.join(sorted(twice))} stands twice"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return super().construct_mapping(node, deep=deep)


def _use_json_scalars(loader: type[yaml.SafeLoader]) -> None:
    tags = {f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float", "timestamp")}
    loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in tags]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for name, pattern, first in (
        ("bool", r"true|false", "tf"),
        ("int", r"-?(0|[1-9][0-9]*)", "-0123456789"),
        ("float", r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?", "-0123456789"),
    ):
        loader.add_implicit_resolver(
            f"tag:yaml.org,2002:{name}", re.compile(rf"(?:{pattern})\Z"), list(first)
        )


_use_json_scalars(_Loader)


def from_file(path: Path, problems: list[str]) -> Document:
    """The document in a YAML file; {} with a problem noted if it cannot be read."""
    try:
        document = yaml.load(path.read_text("utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        # The error's own text quotes the line, which may hold a secret; so may a tag or an alias.
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        problem = re.sub(r" (tag|handle|alias|anchor) .*", r" \1", str(error.problem))
        problems.append(f"{path}: line {line}: {problem}")
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problems.append(f"{path}: {error}")
        return {}
    except Exception:  # whatever its constructors raise; that may quote a secret, too
        problems.append(f"{path}: a value cannot be read")
        return {}
    if document is not None and not isinstance(document, dict):
        problems.append(f"{path}: not a mapping of sections")
        return {}
    return {name: {} if keys is None else keys for name, keys in (document or {}).items()}


def from_environment(document: Document, environ: Mapping[str, str], problems: list[str]) -> None:
    """Overrides the document with `GATEWAY_<SECTION>__<KEY>`, and secrets with `..._FILE`."""
    for name in sorted(environ):
        section, separator, key = name.removeprefix(PREFIX).lower().partition("__")
        if not name.startswith(PREFIX) or not separator:
            continue
        value: Any = environ[name]
        if (section, key.removesuffix("_file")) in SECRETS and key.endswith("_file"):
            key = key.removesuffix("_file")
            value = _secret_from(Path(value), name, problems)
        if section not in SECTIONS or key not in SECTIONS[section].fields:
            problems.append(f"{name}: unknown setting")
        elif isinstance(document.setdefault(section, {}), dict):
            document[section] = {**document[section], key: _typed(section, key, value)}


def _secret_from(path: Path, name: str, problems: list[str]) -> str | None:
    try:
        return path.read_text("utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{name}: {error}")
        return None


def _typed(section: str, key: str, text: str | None) -> Any:
    """The value of an environment variable as YAML would have it; strings stay as they are."""
    field = SECTIONS[section].fields[key]
    if text is None or isinstance(field, fields.String):
        return text
    if isinstance(field, fields.List) and not text.lstrip().startswith("["):
        return [item.strip() for item in text.split(",")]
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except Exception:  # whatever its constructors raise, it is no value
        return text
