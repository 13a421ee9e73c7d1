#!/usr/bin/python3
"""Holds what the roles in ansible/ say of their variables together.

A role says it three times: in defaults/main.yml, which is what holds, in meta/argument_specs.yml, which checks what an
operator sets, and in the table of its README.md. Prints every difference, and exits 1 if there is one.

  check-ansible-variables.py            compare
  check-ansible-variables.py --write    write the tables anew from argument_specs.yml

Needs PyYAML, which comes with ansible-core.
"""

import json
import pathlib
import sys

import yaml

ROLES = pathlib.Path(__file__).resolve().parent.parent / "ansible" / "roles"
BEGIN = "<!-- Variables: written by scripts/check-ansible-variables.py --write -->"
END = "<!-- End of variables -->"
TYPES = {"str": str, "path": str, "bool": bool, "int": int, "list": list, "dict": dict}


def read(path):
    """The YAML document at `path`; none is an empty mapping."""
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def table(options):
    """The variables as a table in Markdown: those without a default first."""
    lines = ["| variable | default | |", "| --- | --- | --- |"]
    for name, option in sorted(options.items(), key=lambda entry: not entry[1].get("required", False)):
        default = "none: set it" if option.get("required") else f"`{shown(option['default'])}`"
        choices = option.get("choices")
        accepted = f" One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else ""
        lines.append(f"| `{name}` | {default} | {option['description']}{accepted} |")
    return "\n".join(lines)


def shown(value):
    """A default as an operator would write it."""
    return value if isinstance(value, str) and value else json.dumps(value)


def differences(role):
    """What is wrong in one role, in sentences."""
    defaults = read(role / "defaults" / "main.yml")
    options = read(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]
    readme = role / "README.md"
    required = {name for name, option in options.items() if option.get("required")}
    for name in sorted(defaults.keys() | options.keys()):
        if not name.startswith(role.name + "_"):
            yield f"{name} does not begin with {role.name}_"
        if name not in options:
            yield f"{name} has a default and is not in argument_specs.yml"
        elif name in required:
            if name in defaults or "default" in options[name]:
                yield f"{name} is required and has a default"
        elif name not in defaults:
            yield f"{name} is neither required nor in defaults/main.yml"
        elif "default" not in options[name] or options[name]["default"] != defaults[name]:
            stated = options[name].get("default", "none")
            yield f"{name} is {defaults[name]!r} in defaults/main.yml and {stated!r} in argument_specs.yml"
        elif not isinstance(defaults[name], TYPES[options[name]["type"]]):
            yield f"{name} is {defaults[name]!r}, which is no {options[name]['type']}"
        elif not isinstance(defaults[name], bool) and options[name]["type"] == "bool":
            yield f"{name} is {defaults[name]!r}, which is no bool"
    parts = readme.read_text(encoding="utf-8").split(BEGIN) if readme.is_file() else []
    if len(parts) != 2 or END not in parts[1]:
        yield f"README.md has no table between '{BEGIN}' and '{END}'"
    elif parts[1].split(END)[0].strip() != table(options):
        yield "the table in README.md is another than argument_specs.yml: run this with --write"


def write(role):
    """Puts the table into the README of one role."""
    options = read(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]
    readme = role / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    readme.write_text(f"{before}{BEGIN}\n{table(options)}\n{END}{after}", encoding="utf-8")


def main():
    """Compares, or writes."""
    if sys.argv[1:] not in ([], ["--write"]):
        sys.exit(f"usage: {sys.argv[0]} [--write]")
    roles = sorted(path for path in ROLES.iterdir() if path.is_dir())
    if not roles:
        sys.exit(f"{sys.argv[0]}: there are no roles in {ROLES}")
    if sys.argv[1:]:
        for role in roles:
            write(role)
    found = [f"{role.name}: {difference}" for role in roles for difference in differences(role)]
    print("\n".join(found), end="\n" if found else "")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
