"""Keys of sections that the recipe names itself: `--finetune.talk.train.steps 20`.

The parser knows `finetune` as a whole. So what the command line says of its keys is put into what the file says of it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tpullm.recipe import mistakes
from tpullm.recipe.mistakes import Keys
from tpullm.recipe.schema import TuningConfig
from tpullm.system.errors import UserError

KINDS = {"finetune": TuningConfig}


def joined(argv: Sequence[str], files: Sequence[Path], known: Keys) -> list[str]:
    """The command line with the whole of a section in place of its single keys.

    Args:
        files: the recipes of the command line; the last one counts.
    """
    import yaml

    rest, changes, words = [], [], iter(argv)
    for word in words:
        option, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and _is_one(option, known):
            value = value if equals else next(words, None)
            if value is None:
                wanted = known.known.get(known.general(option))
                raise UserError(f"--{option}: its value is missing{f'; give {wanted.wanted}' if wanted else ''}")
            changes.append((option, value))
        else:
            rest.append(word)
    if not changes:
        return list(argv)
    whole = {section: _of(section, rest, files) for section in {option.split(".")[0] for option, _ in changes}}
    for option, value in changes:
        *above, last = option.split(".")
        node = whole
        for part in above:
            node[part] = dict(node[part]) if isinstance(node.get(part), dict) else {}
            node = node[part]
        found = _yaml(value)
        if known.general(option) in known.known:
            node[last] = found
        elif isinstance(found, dict) or known.general(option).rpartition(".")[0] in known.known:
            node[last] = _merged(node.get(last), found)
        else:
            raise UserError(f"{option}: has keys of its own; give --{option}.KEY, see {known.where(option)}")
    options = {"default_flow_style": True, "sort_keys": False, "width": float("inf")}  # stages have an order
    as_text = lambda value: yaml.safe_dump(value, **options).strip()  # noqa: E731
    return rest + [f"--{section}={as_text(value)}" for section, value in whole.items()]


def _is_one(option: str, known: Keys) -> bool:
    """Whether it is a key of a section that the recipe names itself, or one of pairs in such a section."""
    general = known.general(option)
    pairs = known.known.get(general.rpartition(".")[0])
    return general != option and (general in known.all or bool(pairs and pairs.kind == "pairs"))


def _merged(old: Any, new: Any) -> Any:
    """A section with other values of some of its keys."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return old | {key: _merged(old.get(key), value) for key, value in new.items()}


def mistake(argv: Sequence[str], files: Sequence[Path], known: Keys) -> tuple[str, str] | None:
    """The line about a value that is wrong in one of the sections, and its key; the parser does not say in which.

    Args:
        argv: the result of `joined`.
    """
    import jsonargparse

    for section, kind in KINDS.items():
        whole = _of(section, argv, files) if section in known.known else {}
        for name, values in whole.items() if isinstance(whole, dict) else ():
            parser = jsonargparse.ArgumentParser(exit_on_error=False)
            parser.add_class_arguments(kind)
            try:
                parser.parse_object(values)
            except Exception as error:
                return mistakes.readable(error, known, f"{section}.{name}")
    return None


def _of(section: str, argv: Sequence[str], files: Sequence[Path]) -> dict[str, Any]:
    """What is said of a section: on the command line, else in the last file that says something."""
    pairs = zip(argv, [*argv[1:], ""], strict=True)
    given = [word.partition("=")[2] or after for word, after in pairs if word.partition("=")[0] == f"--{section}"]
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files if file.is_file()]
    written = [(_yaml(text) or {}).get(section) for text in texts if isinstance(_yaml(text), dict)]
    return next((found for found in [*map(_yaml, given[::-1]), *written[::-1]] if found is not None), {})


def _yaml(text: str) -> Any:
    """The value of YAML as the parser reads it: `1e-3` is a number too."""
    import jsonargparse
    import yaml

    try:
        return jsonargparse.get_loader("yaml")(text)
    except yaml.YAMLError:
        return text
