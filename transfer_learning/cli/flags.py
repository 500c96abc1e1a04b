"""Command-line flags made from the fields of RunConfig."""

import argparse
import dataclasses
import logging
import re
from collections.abc import Callable
from typing import Any, get_type_hints

from transfer_learning.config import EARLIER_VALUES, PHASES, Phase, RunConfig, choices_of, flag_name, known_of

logger = logging.getLogger(__name__)

GROUPS = ("data", "model", "training", "files and machine")  # headings of --help, in this order
Group = argparse._ArgumentGroup


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for every field of RunConfig and of its two phases; absent flags are not in the namespace."""
    groups = {name: parser.add_argument_group(name) for name in GROUPS}
    add_flags(groups, RunConfig())
    for phase in PHASES:
        group = parser.add_argument_group(f"{flag_name(phase)} phase")
        add_flags({"": group}, RunConfig().phase(phase), f"{phase}.")


def add_flags(groups: dict[str, Group], defaults: RunConfig | Phase, prefix: str = "") -> None:
    """Adds a flag per field of `defaults` to the group that the field names, and a hidden one for an earlier name."""
    hints = get_type_hints(type(defaults))
    for item in dataclasses.fields(defaults):
        if item.name in PHASES or prefix + item.name == "frozen.unfreeze":
            continue
        group, hint, name = groups[item.metadata["group"]], hints[item.name], prefix + item.name
        options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS}
        if hint is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = _reader(item, hint, flag_name(name))
            options["metavar"] = {int: "N", float: "X"}.get(hint, item.name.upper())
        text = _help_text(item, getattr(defaults, item.name)).replace("%", "%%")
        action = group.add_argument(f"--{flag_name(name)}", help=text, **options)
        suggestions = choices_of(item) or known_of(item)
        if suggestions:
            action.completer = lambda suggestions=suggestions, **context: suggestions  # type: ignore[attr-defined]
        if item.metadata["was"]:
            options |= {"action": EarlierName, "help": argparse.SUPPRESS, "const": flag_name(name)}
            group.add_argument(f"--{flag_name(prefix + item.metadata['was'])}", **options)


def given_values(flags: argparse.Namespace) -> dict[str, Any]:
    """The flags that were given, by the names that `config.with_values` takes."""
    names = [item.name for item in dataclasses.fields(RunConfig) if item.name not in PHASES]
    names += [f"{phase}.{item.name}" for phase in PHASES for item in dataclasses.fields(Phase)]
    return {name: getattr(flags, name) for name in names if hasattr(flags, name)}


def as_flags(values: dict[str, Any]) -> list[str]:
    """The flags that give what `given_values` returned."""
    flags = []
    for name, value in values.items():
        flag = flag_name(name)
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            text = ",".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
            flags += [f"--{flag}={text}"] if text.startswith("-") else [f"--{flag}", text]
    return flags


def widths(text: str) -> tuple[int, ...]:
    """``"512,256"`` -> ``(512, 256)``; ``"none"`` or nothing -> ``()``."""
    return () if text in ("", "none") else tuple(int(part) for part in text.split(","))


class EarlierName(argparse.Action):
    """An earlier name of a flag, which `const` names."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None):
        logger.warning(
            f"{option_string} is now called --{self.const}; the old name will be removed in a later version."
        )
        setattr(namespace, self.dest, True if self.nargs == 0 else values)


def _reader(item: dataclasses.Field, hint: Any, flag: str) -> Callable[[str], Any]:
    """The function that reads the text of a flag; earlier values of the field are replaced, with a warning."""
    earlier: dict[Any, Any] = EARLIER_VALUES.get(item.name, {})

    def read(text: str) -> Any:
        value = widths(text) if hint == tuple[int, ...] else hint(text)
        if value in earlier:
            logger.warning(f"--{flag} {text} is now called {earlier[value]}; the old name will be removed.")
        return earlier.get(value, value)

    read.__name__ = "widths" if hint == tuple[int, ...] else hint.__name__  # argparse shows it in errors
    return read


def _help_text(item: dataclasses.Field, default: Any) -> str:
    """``learning-rate schedule; one of constant, cosine, plateau (default: constant)``."""
    text, choices, known = item.metadata["help"], choices_of(item), known_of(item)
    if not all(re.search(rf"\b{choice}\b", text) for choice in choices):
        text += f"; one of {', '.join(choices)}"
    if known:
        text += f"; known: {', '.join(known)}"
    details = [f"default: {_as_text(default)}"] if default != "" else []
    details += [str(item.metadata["bounds"])] if str(item.metadata["bounds"]) else []
    return f"{text} ({'; '.join(details)})" if details else text


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
