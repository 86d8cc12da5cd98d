"""Holds run specs against the classes that VESSL generates from its API and ships in its client.

    python strict.py SPEC...

Needs no network and no account: pip install -r requirements.txt under Python 3.9 to 3.12. The client's own check looks
at two keys only; its classes know every field, its type and its range. So that a check that passes everything is
noticed, planted mistakes have to be refused, too.
"""

import copy
import re
import sys

import vessl.openapi_client.models as models
import yaml
from vessl.openapi_client.configuration import Configuration

CONFIGURATION = Configuration()
CONFIGURATION.client_side_validation = True
PLAIN = {"str": str, "int": int, "float": (int, float), "bool": bool, "object": object}


def hold(kind, data, path, found):
    """Makes an instance of a generated class; its setters check values."""
    if not isinstance(data, dict):
        found.append(f"{path}: mapping expected")
        return None
    attributes = {field: name for name, field in kind.attribute_map.items()}
    arguments = {}
    for field, value in data.items():
        if field not in attributes:
            found.append(f"{path}.{field}: unknown field")
            continue
        name = attributes[field]
        arguments[name] = convert(kind.openapi_types[name], value, f"{path}.{field}", found)
    try:
        return kind(local_vars_configuration=CONFIGURATION, **arguments)
    except (ValueError, TypeError) as error:
        found.append(f"{path}: {error}")
        return None


def convert(kind, value, path, found):
    if value is None:
        return None
    if inner := re.match(r"list\[(.*)\]$", kind):
        if not isinstance(value, list):
            found.append(f"{path}: list expected")
            return None
        return [convert(inner[1], item, f"{path}[{index}]", found) for index, item in enumerate(value)]
    if inner := re.match(r"dict\[str, (.*)\]$", kind):
        if not isinstance(value, dict):
            found.append(f"{path}: mapping expected")
            return None
        return {key: convert(inner[1], item, f"{path}.{key}", found) for key, item in value.items()}
    if kind in PLAIN:
        if not isinstance(value, PLAIN[kind]):
            found.append(f"{path}: {kind} expected")
        return value
    return hold(getattr(models, kind), value, path, found)


def form(spec):
    """The short forms of the YAML in the shape of the classes."""
    shaped = copy.deepcopy(spec)
    if isinstance(shaped.get("image"), str):
        shaped["image"] = {"url": shaped["image"]}
    for name, value in list((shaped.get("env") or {}).items()):
        if not isinstance(value, dict):
            shaped["env"][name] = {"source": "text", "value": value}
        elif "source" not in value and "secret" in value:
            value["source"] = "secret"
    return shaped


def mistakes(spec):
    found = []
    hold(models.V1RunSpecFormBodyInput, form(spec), "$", found)
    for field in ("image", "resources"):
        if field not in spec:
            found.append(f"$.{field}: missing")
    resources = spec.get("resources") or {}
    if "preset" not in resources and "requests" not in resources:
        found.append("$.resources.preset: missing")
    return found


def planted(spec):
    """Copies of a good spec, each with one mistake, and the field that a refusal has to name."""

    def bad(field, change):
        copied = copy.deepcopy(spec)
        change(copied)
        return field, copied

    yield bad("$.max_runtime", lambda s: s.update(max_runtime="24h"))
    yield bad("$.termination-protection", lambda s: s.update({"termination-protection": True}))
    yield bad("$.resources.accelerators", lambda s: s["resources"].update(accelerators="A100:1"))
    yield bad("$.resources.spot", lambda s: s["resources"].update(spot=True))
    yield bad("$.resources.preset", lambda s: s["resources"].pop("preset"))
    yield bad("$.image", lambda s: s.pop("image"))
    yield bad("$.run", lambda s: s.update(run="evaluate"))
    yield bad("$.env.X", lambda s: s["env"].update(X={"source": "somewhere", "value": "a"}))
    yield bad("$.export./out/.hf", lambda s: s.update(export={"/out/": {"hf": {"url": "a/b"}}}))
    yield bad("$.interactive.runtime", lambda s: s.update(interactive={"runtime": "24h"}))
    yield bad("$.tags", lambda s: s.update(tags="wmtp"))


def main(paths):
    failed = False
    for path in paths:
        with open(path, encoding="utf-8") as file:
            spec = yaml.safe_load(file)
        found = mistakes(spec)
        failed |= bool(found)
        for line in found:
            print(f"{path}: {line}")
    count = 0
    for field, bad in planted(spec):
        count += 1
        found = mistakes(bad)
        if not any(line.startswith(field) for line in found):
            failed = True
            print(f"planted mistake at {field} was not refused: {found}")
    print(f"{len(paths)} specs held against VESSL's classes, {count} planted mistakes")
    return 65 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1:]))
