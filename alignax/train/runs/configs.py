"""Configurations as plain data and as YAML: what ``--print-config`` prints."""

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from alignax.types import InputError


class Option(typing.NamedTuple):
    """A field of a configuration: its key, and the group that it is, or None."""

    key: str
    group: type | None
    flat: bool


def options_of(kind: type) -> dict[str, Option]:
    """The fields of a configuration, under the names that a command line gives them.

    Args:
      kind: a dataclass; a field that is one, too, is a group.

    Returns:
      for each field its option.
    """
    found, hints = {}, typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint, name = hints[field.name], field.name
        for note in getattr(hint, "__metadata__", ()):
            name = getattr(note, "name", None) if hasattr(note, "name") else name
            name = field.name if name is None else name
        bare = typing.get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
        group = bare if dataclasses.is_dataclass(bare) else None
        found[field.name] = Option(name, typing.cast("type | None", group), name == "")
    return found


def as_mapping(config: Any) -> dict[str, Any]:
    """A configuration as plain data: dictionaries, lists, texts and numbers.

    Args:
      config: an instance of a configuration's dataclass.

    Returns:
      its options by the names that a command line gives them, groups nested.
    """
    plain: dict[str, Any] = {}
    for name, option in options_of(type(config)).items():
        value = getattr(config, name)
        if option.group is not None:
            inner = as_mapping(value)
            plain |= inner if option.flat else {option.key: inner}
        elif isinstance(value, tuple):
            plain[option.key] = [_plain(x) for x in value]
        else:
            plain[option.key] = _plain(value)
    return plain


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def dumped(config: Any) -> str:
    """A configuration as YAML, which ``arguments`` reads again.

    Args:
      config: an instance of a configuration's dataclass.

    Returns:
      the text.
    """
    return yaml.safe_dump(as_mapping(config), sort_keys=False, allow_unicode=True)


def arguments(kind: type, path: str | Path) -> list[str]:
    """A YAML file of options as the arguments of a command line, which later ones
    override.

    Args:
      kind: the configuration's dataclass.
      path: the file, with any of the options.

    Returns:
      the arguments.

    Raises:
      InputError: the file cannot be read, is no mapping, or has an unknown key.
    """
    return flags(kind, loaded(path, what="config"), where=f"config: {path}")


def loaded(path: str | Path, *, what: str) -> Any:
    """What a YAML file says; an empty one has no options.

    Args:
      path: the file.
      what: it is, for messages.

    Returns:
      its content.

    Raises:
      InputError: it cannot be read, or is no YAML.
    """
    path = Path(path)
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        as_printed = ", as --print-config prints one," if what == "config" else ""
        raise InputError(
            f"{what}: {str(path)!r} cannot be read ({error.strerror}); a YAML file"
            f"{as_printed} would do"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(
            f"{what}: {str(path)!r} is not YAML: {' '.join(str(error).split())}"
        ) from error
    return {} if given is None else given


def flags(kind: type, given: Any, *, where: str) -> list[str]:
    """Options as plain data as the arguments of a command line.

    Args:
      kind: the configuration's dataclass.
      given: options by their names, groups nested.
      where: they are from, for messages.

    Returns:
      the arguments.

    Raises:
      InputError: there is no such option.
    """
    return list(_flags(kind, given, where, ""))


def _known(kind: type) -> dict[str, type | None]:
    known: dict[str, type | None] = {}
    for option in options_of(kind).values():
        if option.flat and option.group is not None:
            known |= _known(option.group)
        else:
            known[option.key] = option.group
    return known


def _flags(kind: type, given: Any, path: str, prefix: str) -> Iterator[str]:
    if not isinstance(given, Mapping):
        raise InputError(
            f"{path}{f', key {prefix[:-1]}' if prefix else ''}: options by "
            f"their names would do, got a {type(given).__name__}"
        )
    known = _known(kind)
    for key, value in given.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else ""
            raise InputError(
                f"{path}, key {prefix}{key}: there is no such option; "
                f"{hint or 'there are ' + ', '.join(known)}"
            )
        group = known[key]
        if group is not None:
            yield from _flags(group, value, path, f"{prefix}{key}.")
        elif isinstance(value, bool) and _switch(kind, key):
            yield f"--{prefix}{'' if value else 'no-'}{key}".replace("_", "-")
        elif isinstance(value, list):
            yield f"--{prefix}{key}".replace("_", "-")
            yield from map(_text, value)
        elif isinstance(value, Mapping):
            raise InputError(
                f"{path}, key {prefix}{key}: one value, or a list of them, "
                "would do, got a mapping"
            )
        else:
            yield f"--{prefix}{key}".replace("_", "-") + f"={_text(value)}"


def _switch(kind: type, key: str) -> bool:
    """Whether an option is a flag without a value."""
    hints = typing.get_type_hints(kind)
    for name, option in options_of(kind).items():
        if option.flat and option.group is not None:
            if _switch(option.group, key):
                return True
        elif option.key == key:
            return hints[name] is bool
    return False


def _text(value: Any) -> str:
    return "None" if value is None else str(value)
