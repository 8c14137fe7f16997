"""`tpullm VERB --help` and `--help-all`, without importing JAX."""

import argparse
import ast
import dataclasses
import importlib
from pathlib import Path

from tpullm.cli.verb_table import VERBS, module_of
from tpullm.recipe import schema_keys
from tpullm.recipe.help_page import Option, Page, brief, columns, full
from tpullm.recipe.schema import Recipe
from tpullm.system.cluster import place

OF_HOSTS = Option("--hosts.count N", "N hosts; this one is --hosts.index I (see --help-all)")


def text(verb: str, everything: bool = False) -> str:
    """The help of a verb: at most 60 lines, or every key in full."""
    return full(page(verb, everything), columns()) if everything else brief(page(verb), columns())


def page(verb: str, everything: bool = False) -> Page:
    """The contents of a verb's help."""
    about, options, sections, keys = VERBS[verb], _own_options(verb), [], ""
    words = [f"[{option.name}]" if option.optional else option.name for option in options if option.is_word]
    usage = " ".join([f"tpullm {verb}", *words, *(["[options]"] if len(words) < len(options) else [])])
    if about.recipe:
        usage = f"tpullm {verb} [RECIPE] [--run RUN] [options] [--KEY VALUE ...]"
        everywhere = [field.name for field in dataclasses.fields(Recipe)]
        sections = schema_keys.chosen(list(schema_keys.sections(Recipe)), everywhere if everything else about.keys)
        keys = f"Keys of the recipe{'' if everything else f' that {verb} reads'}, with their defaults:"
        options = [*_recipe_options(verb), *options]
    if about.joins:
        options.append(OF_HOSTS)
    if about.reads:
        from tpullm.launch.job import LaunchConfig

        usage += " [--KEY VALUE ...] -- VERB ..."
        sections, keys = list(schema_keys.sections(LaunchConfig)), "Keys of the launch, with their defaults:"
        file = Option("--config FILE", "a YAML file of these keys, or a name: local, slurm, tpu-vm, compute or batch")
        options = [*options, file]
    if sections and not everything:
        options = [*options, Option("--help-all", "every key in full, with those that other verbs read")]
    shown = [f"tpullm {verb} {example}".strip() for example in about.examples]
    return Page(usage, _description(verb), shown, options, keys, sections, _notes(verb) if everything else ())


def _description(verb: str) -> str:
    """The docstring of the verb's module, read without importing the module."""
    file = Path(__file__).with_name(f"{module_of(verb).rpartition('.')[2]}.py")
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""


def _recipe_options(verb: str) -> list[Option]:
    options = [Option("RECIPE", "a name of `tpullm recipes`, or a YAML file; default: the recipe of RUN")]
    if VERBS[verb].shared:
        options.append(Option("--share.count N", "N processes share the work; this one is --share.index I"))
    elif VERBS[verb].computes:
        options.append(OF_HOSTS)
    return options


def _own_options(verb: str) -> list[Option]:
    """The options that the verb's module adds to its parser."""
    if not VERBS[verb].adds:
        return []
    parser = argparse.ArgumentParser(add_help=False)
    getattr(importlib.import_module(module_of(verb)), VERBS[verb].adds)(parser)
    return [_option(action, bool(VERBS[verb].shows)) for action in parser._actions]


def _option(action: argparse.Action, shows: bool) -> Option:
    value = action.metavar or {int: "N", float: "X"}.get(action.type, action.dest.upper())
    has_default = action.default not in (None, "") and action.default is not False
    if not action.option_strings:
        return Option(value, action.help + f" (default {action.default})" * has_default, action.nargs == "?")
    name = action.option_strings[-1] + ("" if action.nargs == 0 else f" {value}")
    told = " (required)" if action.required and not shows else ""
    if has_default:
        told = f" (default {action.default})"
    return Option(name, action.help + told)


def _notes(verb: str) -> list[str]:
    if VERBS[verb].shared:
        return [place.SHARE_HELP]
    return [place.HELP] if VERBS[verb].joins or VERBS[verb].recipe and VERBS[verb].computes else []
