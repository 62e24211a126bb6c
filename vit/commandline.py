"""How the words of a command line become the typed values of a verb.

A verb is a plain function, and its signature is its command line:

    def explain(model: str, images: list[str], data: DataOptions, *, out: str, method: str = "rollout")

- positional parameters are words without a name (`MODEL IMAGES...`); if the last one is a list, it takes the rest;
- keyword-only parameters are options (`--out DIR`), required when they have no default;
- a dataclass, in either place, is a group of options, one for each field (`--data.root DIR`).

Its docstring above "Args:" opens `vit VERB --help` (the first paragraph also appears in `vit --help`);
"Args:", there and in the dataclasses, describes the options. Values are processed as follows:

1. words are sorted into options and positionals. Names must match exactly, and environment variables set nothing;
2. recipes (`--config`) are read as YAML in which all scalars stay text, without tags, anchors, class paths;
3. defaults, then recipes in their order, then words: later ones win, wherever `--config` is given;
4. jsonargparse converts the text to the type of its parameter. It sees one value and one plain type at a
   time, never a class, so that no value can make it import, read or fetch anything;
5. the dataclasses are built and the verb is called. While it runs, `current_config()` is its YAML.
"""

import inspect
import os
import re
import shutil
import sys
import textwrap
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import docstring_parser
import yaml
from jsonargparse import ArgumentError, ArgumentParser

from vit.foundation import RECIPE, UserError, nearest

ABOUT = "Fine-tune a Vision Transformer on photographs, learn how far to trust it, and see where it looked."
WIDTH = min(100, shutil.get_terminal_size((100, 24)).columns)  # of the help
FLAGS = {"-h", "--help", "--debug", "--print_config"}  # recognised anywhere in the line
RECIPE_FOLDERS = [folder / "configs" for folder in Path(__file__).parents[:2]]  # in a wheel; in a checkout
CODE_KEYS = {"class_path", "init_args"}  # keys by which jsonargparse and Lightning name code to import

Verb = Callable[..., None]
Given = dict[str, tuple[Any, str]]  # name of an option: value before its conversion, origin for errors
_config: ContextVar[str | None] = ContextVar("config", default=None)


class UsageError(UserError):
    """A mistake in the words of the command line or in a recipe."""


@dataclass(frozen=True)
class Option:
    """One value that a verb takes. The default is MISSING for a required one."""

    name: str
    type: Any
    default: Any
    help: str
    positional: bool = False

    @property
    def label(self) -> str:
        """The option as users write it."""
        return self.name.upper() if self.positional else f"--{self.name}"


COMMON = [
    Option("config", str, None, "a YAML file of options, or the name of a shipped recipe; options given here win"),
    Option("print_config", bool, False, "print all options as YAML, as --config reads it, and stop"),
    Option("debug", bool, False, "show the traceback of an error"),
    Option("help", bool, False, "show this text"),
]


def current_config() -> str | None:
    """The options of the running verb as YAML for `--config`; None when no command line is running."""
    return _config.get()


def run_command(
    verbs: dict[str, Verb], arguments: list[str], before: Callable[[dict[str, Any]], None] | None = None
) -> int:
    """Runs one command line and returns its exit code.

    The codes are: 0 done; 1 the verb failed; 2 a mistake in the words, and nothing was run; 130 interrupted; 141 the
    reader of the output has gone.

    Args:
        before: called with the verb's keywords before the verb itself; may raise UserError.
    """
    flags = FLAGS.intersection(arguments)
    words = [word for word in arguments if word not in FLAGS]
    verb = verbs.get(words[0]) if words else None
    name = f"vit {words[0]}" if verb else "vit"
    try:
        if verb and flags & {"-h", "--help"}:
            print(_verb_help(name, verb))
        elif verb:
            _run_verb(verb, _read_words(words[1:], verb), "--print_config" in flags, before)
        elif words == ["--version"]:
            print(f"vit {_version()}")
        elif words:
            known = f"{nearest(words[0], verbs)}\nThe verbs are: {', '.join(verbs)}"
            raise UsageError(f"unknown verb {_shown(words[0])}{known}")
        else:
            print(_overview(verbs))
        sys.stdout.flush()  # raises here if the pipe is closed; when Python flushes at exit, nobody can catch it
        return 0 if words or flags else 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at exit
        return 141
    except Exception as error:
        if "--debug" in flags:
            traceback.print_exc()
        print(f"{name}:", "\n".join(_message(error, name).splitlines()[:5]), file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def _run_verb(verb: Verb, given: Given, print_config: bool, before: Callable[[dict[str, Any]], None] | None) -> None:
    nested: dict[str, Any] = {}  # {"data": {"root": ...}, "seed": ...}
    missing = []
    for option in verb_options(verb):
        value = _typed(option, *given[option.name]) if option.name in given else option.default
        if value is MISSING:
            missing.append(option.label)
            continue
        group, dot, field = option.name.partition(".")
        if dot:
            nested.setdefault(group, {})[field] = value
        else:
            nested[group] = value
    resolved = yaml.safe_dump(nested, sort_keys=False, allow_unicode=True)
    if print_config:
        print(resolved, end="")
        return
    if missing:
        raise UsageError(f"{' and '.join(missing)} must be given")
    for name, hint in get_type_hints(verb).items():
        if is_dataclass(hint):
            nested[name] = hint(**nested[name])  # type: ignore[operator]
    if before is not None:
        before(nested)
    token = _config.set(_recipe_lines(given) + resolved)
    try:
        verb(**nested)
    finally:
        _config.reset(token)


def _recipe_lines(given: Given) -> str:
    """Comments that name the recipes that the options come from; those in a run's config.yaml are passed on."""
    shipped = {str(path): name for name, path in shipped_recipes().items()}
    lines: dict[str, None] = {}
    for path in dict.fromkeys(origin.rpartition(": ")[0] for _, origin in given.values() if ": " in origin):
        own = [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.startswith(RECIPE)]
        lines |= dict.fromkeys(own or [f"{RECIPE}{shipped.get(path, path)}"])
    return "".join(f"{line}\n" for line in lines)


def _message(error: Exception, name: str) -> str:
    """What users read of an error: a UserError's own text, how to use less memory, or how to report a bug."""
    if isinstance(error, UserError):
        return f"{error}\nSee {name} --help." if isinstance(error, UsageError) else str(error)
    what = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    # By name and message, because torch, which has an error of its own for this, is slow to import.
    signs = "not enough memory|out of memory|can't allocate memory"
    full = isinstance(error, RuntimeError) and re.search(signs, str(error))
    if full or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory.\n{what}\nTry a smaller batch size, --trainer.accumulate, or precision bf16."
    if isinstance(error, ValueError) and _raised_by_us(error):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f" {error.filename}" if error.filename else ""
        return f"the system refused{where}: {error.strerror}.\nCheck the free disk space and the permissions there."
    return f"{what}\nThis is a bug or an unusual input; run again with --debug for the traceback."


def _raised_by_us(error: Exception) -> bool:
    """Whether the error was raised by a line of this project, whose ValueErrors are worded for users."""
    *_, last = traceback.walk_tb(error.__traceback__)
    return last[0].f_globals["__name__"].split(".")[0] in {"vit", "datamodules", "wiring", "cli", "__main__"}


def verb_options(verb: Verb) -> list[Option]:
    """The options of a verb, from its signature and docstrings; those of a group are named `group.field`."""
    options = []
    hints, helps = get_type_hints(verb), _argument_helps(verb)
    for name, parameter in inspect.signature(verb).parameters.items():
        hint = hints[name]
        if is_dataclass(hint):
            field_hints, field_helps = get_type_hints(hint), _argument_helps(hint)
            for field in fields(hint):
                default = field.default if field.default_factory is MISSING else field.default_factory()
                description = field_helps.get(field.name, "")
                options.append(Option(f"{name}.{field.name}", field_hints[field.name], default, description))
        else:
            default = MISSING if parameter.default is parameter.empty else parameter.default
            positional = parameter.kind is not parameter.KEYWORD_ONLY
            options.append(Option(name, hint, default, helps.get(name, ""), positional))
    return options


def _argument_helps(documented: object) -> dict[str, str]:
    owners = reversed(getattr(documented, "__mro__", [documented]))  # a dataclass inherits options
    arguments = [each for owner in owners for each in docstring_parser.parse(owner.__doc__ or "").params]
    return {each.arg_name: " ".join((each.description or "").split()).rstrip(".") for each in arguments}


def _read_words(words: list[str], verb: Verb) -> Given:
    """Sorts words, in any order, into options and positionals, which override the recipes."""
    for word in words:
        value = word.partition("=")[2] if word.startswith("--") else word
        if re.search("[!:]", value):  # every tag and key has one; this saves time on thousands of file names
            with suppress(yaml.YAMLError):  # not YAML, so the word is only text
                _refuse_code(value, f"{_shown(word)} (if that is a file, write ./ before it)")
    options = {option.name: option for option in verb_options(verb)}
    named = {option.label: option for option in [*options.values(), *COMMON] if not option.positional}
    recipes: Given = {}
    given: Given = {}
    free = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        label, equals, value = word.partition("=")
        if not word.startswith("-"):
            free.append(word)
        elif label not in named or label in FLAGS:
            raise UsageError(f"unknown option {_shown(word)}{_suggestion(label, named)}")
        else:
            value = value if equals else _next_value(named[label], queue)
            if label == "--config":
                recipes |= _read_recipe(value, options)
            else:
                given[named[label].name] = (value, label)
    for option in options.values():
        if option.positional and free:
            takes_rest = get_origin(option.type) is list
            given[option.name] = (free if takes_rest else free[0], option.label)
            free = [] if takes_rest else free[1:]
    if free:
        config = Path(free[0], "config.yaml")
        way = f"\nA run is continued by: --config {config} --resume" if config.is_file() else ""
        raise UsageError(f"unexpected word {_shown(free[0])}; a value follows the --option it is for{way}")
    return recipes | given


def _next_value(option: Option, queue: list[str]) -> str:
    """The value of an option without `=`. A flag needs none, and takes the next word only if it is true or false."""
    if option.type is bool:
        return queue.pop(0) if queue and queue[0].lower() in ("true", "false") else "true"
    if not queue or queue[0].startswith("--"):
        raise UsageError(f"{option.label} needs a value: {_type_name(option.type)}")
    return queue.pop(0)


def _suggestion(name: str, allowed: Collection[str]) -> str:
    """A hint with the nearest name. An equal last part comes first, so that `--lr` suggests `--optim.lr`."""
    leaves = {_leaf(item): item for item in allowed}
    same = [item for item in allowed if _leaf(item) == _leaf(name)]
    parts = [leaves[leaf] for leaf in get_close_matches(_leaf(name), leaves, n=1)]
    close = same or get_close_matches(name, list(allowed), n=1) or parts
    return f" (did you mean {close[0]!r}?)" if close else ""


def _leaf(name: str) -> str:
    return name.rpartition(".")[2].lstrip("-")


class _TextLoader(yaml.BaseLoader):
    """Reads every scalar as text, except null. A key that is given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value in seen:
                problem = f"the key {_shown(str(key.value))} is given twice or is not a plain word"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_TextLoader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^(~|null|)$"), ["~", "n", ""])
_TextLoader.add_constructor("tag:yaml.org,2002:null", lambda loader, node: None)


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the program, by their short names, such as classify/finetune."""
    folder = next((folder for folder in RECIPE_FOLDERS if folder.is_dir()), RECIPE_FOLDERS[0])
    paths = sorted(folder.rglob("*.yaml"))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def _read_recipe(name: str, options: dict[str, Option]) -> Given:
    recipes = shipped_recipes()
    try:
        path = Path(name) if Path(name).is_file() else recipes.get(name)
        if path is None:
            known = f"{nearest(name, recipes)}\nThe recipes are: {', '.join(recipes)}"
            raise UsageError(f"--config: there is no file or recipe {_shown(name)}{known}")
        if path.stat().st_size > 1_000_000:
            raise UsageError(f"{path} is not a recipe: it is larger than a megabyte")
        text = path.read_text(encoding="utf-8")
        _refuse_code(text, str(path))
        tree = yaml.load(text, Loader=_TextLoader)
    except OSError as error:
        raise UsageError(f"can't read {_shown(name)}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a recipe: it is not text in UTF-8") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", "not YAML")
        raise UsageError(f"{path}{f', line {mark.line + 1}' if mark else ''}: {problem}") from None
    if not isinstance(tree, dict | None):
        raise UsageError(f"{path} holds no options; it should have lines such as `seed: 0`")
    return dict(_flatten(tree or {}, options, path))


def _flatten(tree: dict[Any, Any], options: dict[str, Option], path: Path) -> Iterator[tuple[str, Any]]:
    """Turns {"data": {"root": x}} into data.root: x. An empty group changes nothing."""
    groups = {name.partition(".")[0] for name in options if "." in name}
    for key, value in tree.items():
        if key in groups and isinstance(value, dict | None):
            entries = {f"{key}.{field}": item for field, item in (value or {}).items()}
        else:
            entries = {str(key): value}
        for name, item in entries.items():
            if name not in options:
                raise UsageError(f"{path}: unknown key {_shown(name)}{_suggestion(name, options)}")
            yield name, (item, f"{path}: {name}")


def _refuse_code(text: str, where: str) -> None:
    """Refuses YAML that could name code, or exhaust its reader. Raises YAMLError for text that is not YAML."""
    depth, anchor = 0, None
    for event in yaml.parse(text, Loader=yaml.BaseLoader):
        tag, value = getattr(event, "tag", None), getattr(event, "value", "")
        if tag or _leaf(value) in CODE_KEYS:
            raise UsageError(f"{where}: {_shown(tag or value)} is refused, because it could name code")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > 20:  # PyYAML's time grows with the square of the depth
            raise UsageError(f"{where}: nested too deeply")
        anchor = event if getattr(event, "anchor", None) else anchor
    if anchor:
        raise yaml.composer.ComposerError(
            None,
            None,
            "anchors and aliases are refused",
            anchor.start_mark,  # type: ignore[arg-type, unused-ignore]
        )


def _typed(option: Option, value: Any, where: str) -> Any:
    """The value, converted to the type of its option."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=option.type)
    if value is not None or NoneType in get_args(option.type):  # a lone None would pass as "not given"
        with suppress(ArgumentError):
            return parser.parse_object({"value": value}, env=False).value
    got = _shown("null" if value is None else str(value))
    choices = [choice for choice in get_args(option.type) if isinstance(choice, str)]
    raise UsageError(f"{where} takes {_type_name(option.type)}; got {got}{nearest(str(value), choices)}")


def _type_name(hint: Any) -> str:
    """A type as users read it, such as `INTEGER or [INTEGER, ...]`."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_type_name(item) for item in get_args(hint))
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    if get_origin(hint) is list:
        return f"[{_type_name(get_args(hint)[0])}, ...]"
    return {str: "TEXT", int: "INTEGER", float: "NUMBER", bool: "true|false", NoneType: "null"}[hint]


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 80 else f"{text[:80]!r}..."


def _version() -> str:
    with suppress(PackageNotFoundError):
        return version("vitscope")
    return "(not installed, running from source)"


def _overview(verbs: dict[str, Verb]) -> str:
    rows = [_row(name, _paragraphs(verb)[0]) for name, verb in verbs.items()]
    examples = [text for verb in verbs.values() for text in _paragraphs(verb) if text.startswith("Example:")]
    usage = "Usage: vit VERB [options]     vit VERB --help: the options of a verb     vit --version"
    return "\n".join([textwrap.fill(ABOUT, WIDTH), "", usage, "", *rows, "", *examples[:1]])


def _verb_help(name: str, verb: Verb) -> str:
    usage = [name]
    rows: dict[str, list[str]] = {"": []}  # by group
    for option in verb_options(verb):
        group, dot, _ = option.name.partition(".")
        rows.setdefault(group if dot else "", []).append(_option_row(option))
        if option.positional:
            usage.append(option.label + ("..." if get_origin(option.type) is list else ""))
        elif option.default is MISSING:
            usage.append(f"{option.label} {_type_name(option.type)}")
    blocks = [f"Usage: {' '.join(usage)} [options]", *_paragraphs(verb), "\n".join(rows.pop(""))]
    helps = _argument_helps(verb)
    blocks += ["\n".join([f"{group}: {helps.get(group, '')}", *lines]) for group, lines in rows.items()]
    return "\n\n".join([*blocks, "\n".join(["with every verb:", *map(_option_row, COMMON)])])


def _option_row(option: Option) -> str:
    plain = option.positional or str(option.default) in ("None", "False", "")  # but not 0
    note = "" if plain else " (required)" if option.default is MISSING else f" (default: {option.default})"
    is_flag = option.type is bool and plain
    types = "" if option.positional or is_flag else _type_name(option.type).removesuffix(" or null")
    return _row(f"{option.label} {types}", option.help + note)


def _row(left: str, right: str) -> str:
    """A name and its description side by side; after a long name the description starts on a new line, and a name that
    is longer than a line is wrapped after a "|"."""
    lines = textwrap.wrap(right, WIDTH - 30) or [""]
    names = textwrap.wrap(left.replace("|", "| "), WIDTH - 2, subsequent_indent="      ")
    left = "\n".join(names).replace("| ", "|")
    head = f"  {left:<28}" + (lines.pop(0) if len(left) < 28 else "")
    return "\n".join([head.rstrip(), *(" " * 30 + line for line in lines)])


def _paragraphs(verb: Verb) -> list[str]:
    """The paragraphs of the docstring above "Args:", wrapped so that a long example can be pasted into a shell."""
    above = re.split(r"\nArgs:", inspect.getdoc(verb) or "")[0].strip()
    wrap = textwrap.TextWrapper(WIDTH - 6, break_long_words=False, break_on_hyphens=False).wrap
    breaks = {True: " \\\n    ", False: "\n"}
    return [breaks[text.startswith("Example:")].join(wrap(text)) for text in re.split(r"\n\s*\n", above)]
