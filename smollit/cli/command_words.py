"""The words of a command line, put into the order and form that jsonargparse expects."""

from collections.abc import Sequence, Set

CONFIG = "--config"
NEEDS_NO_VALUE = ("--help", "-h", "--print_config", "--print_completion")


def command_words(words: Sequence[str], flags: Set[str]) -> list[str]:
    """Configs first, so that a setting on the command line wins wherever it stands; `--strict` is `--strict=true`.

    Args:
        words: The arguments of a command.
        flags: Those that are true or false, and need no value.

    Raises:
        ValueError: If a setting has no value.
    """
    configs, others = [], []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        has_value = bool(rest) and not rest[0].startswith("--")
        if word == CONFIG and has_value:
            configs += [word, rest.pop(0)]
        elif word.startswith(f"{CONFIG}="):
            configs.append(word)
        elif word in flags and not has_value:
            others.append(f"{word}=true")
        else:
            _check_value(word, has_value)
            others.append(word)
    return configs + others


def _check_value(word: str, has_value: bool) -> None:
    is_setting = word.startswith("--") and "=" not in word and not word.endswith(".help")
    if is_setting and not has_value and word not in NEEDS_NO_VALUE:
        raise ValueError(f"`{word}` has no value: write {word} VALUE")
