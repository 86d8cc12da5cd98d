"""Holds Argo WorkflowTemplates against the classes that hera generates from Argo's API.

    python argo.py FILE...

FILE is a template, or a ConfigMap whose limits the templates ask for.

Needs no network and no cluster. The classes check types and leave out fields that they do not know, which are looked for
here. Planted mistakes have to be refused, too.
"""

import copy
import sys
import typing

import yaml
from hera.workflows import models
from pydantic import BaseModel, ValidationError
from pydantic.v1 import BaseModel as OldModel
from pydantic.v1 import ValidationError as OldError


def fields(kind):
    """Name in the file to annotation, of a generated class."""
    if hasattr(kind, "model_fields"):
        return {field.alias or name: field.annotation for name, field in kind.model_fields.items()}
    return {field.alias: field.outer_type_ for field in kind.__fields__.values()}


def is_model(kind):
    return isinstance(kind, type) and issubclass(kind, (BaseModel, OldModel))


def unknown(kind, value, path):
    """Fields that no class has."""
    if is_model(kind) and isinstance(value, dict):
        known = fields(kind)
        if list(known) in (["__root__"], ["root"]):
            return
        for field, inner in value.items():
            if field not in known:
                yield f"{path}.{field}: unknown field"
            else:
                yield from unknown(known[field], inner, f"{path}.{field}")
        return
    inner_kinds = typing.get_args(kind)
    if typing.get_origin(kind) is dict:
        for key, item in (value.items() if isinstance(value, dict) else ()):
            yield from unknown(inner_kinds[1], item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            for inner in inner_kinds:
                yield from unknown(inner, item, f"{path}[{index}]")
    else:
        for inner in inner_kinds:
            yield from unknown(inner, value, path)


def mistakes(template, limits):
    """What is wrong with a template; `limits` are name and key of each limit that a ConfigMap holds."""
    found = list(unknown(models.WorkflowTemplate, template, "$"))
    parse = getattr(models.WorkflowTemplate, "model_validate", models.WorkflowTemplate.parse_obj)
    try:
        parse(template)
    except (ValidationError, OldError) as error:
        found += ["$." + ".".join(str(part) for part in each["loc"]) + ": " + each["msg"] for each in error.errors()]
    names = {each["name"] for each in template["spec"]["templates"]}
    for index, each in enumerate(template["spec"]["templates"]):
        for task in each.get("dag", {}).get("tasks", []):
            tasks = {other["name"] for other in each["dag"]["tasks"]}
            if task["template"] not in names or not set(task.get("dependencies", [])) <= tasks:
                found.append(f"$.spec.templates: task {task['name']} names what is not there")
        for semaphore in each.get("synchronization", {}).get("semaphores", []):
            limit = semaphore.get("configMapKeyRef", {})
            if (limit.get("name"), limit.get("key")) not in limits:
                found.append(f"$.spec.templates[{index}].synchronization: no ConfigMap holds {limit}")
    return found


def planted(template):
    def bad(field, change):
        copied = copy.deepcopy(template)
        change(copied["spec"])
        return field, copied

    yield bad("$.spec.entrypont", lambda s: s.update(entrypont="chain"))
    yield bad("$.spec.templates[1].retryStrategies", lambda s: s["templates"][1].update(retryStrategies={}))
    yield bad("$.spec.templates[1].container.images", lambda s: s["templates"][1]["container"].update(images="a"))
    yield bad("$.spec.templates.1.container.args", lambda s: s["templates"][1]["container"].update(args={"a": "b"}))
    yield bad("$.spec.templates: task", lambda s: s["templates"][0]["dag"]["tasks"][0].update(template="none"))


def planted_limits(template):
    """The index of a template with a semaphore, and the same template asking for limits in wrong ways."""
    index = next(index for index, each in enumerate(template["spec"]["templates"]) if "synchronization" in each)
    for field, semaphore in [
        (f"$.spec.templates[{index}].synchronization.semaphores[0].configMap: unknown", {"configMap": {}}),
        (f"$.spec.templates[{index}].synchronization: no ConfigMap", {"configMapKeyRef": {"name": "a", "key": "b"}}),
    ]:
        copied = copy.deepcopy(template)
        copied["spec"]["templates"][index]["synchronization"]["semaphores"] = [semaphore]
        yield field, copied


def main(paths):
    failed, count = False, 0
    files = {}
    for path in paths:
        with open(path, encoding="utf-8") as file:
            files[path] = yaml.safe_load(file)
    maps = [each for each in files.values() if each["kind"] == "ConfigMap"]
    limits = {(each["metadata"]["name"], key) for each in maps for key, most in each["data"].items() if int(most) > 0}
    templates = {path: each for path, each in files.items() if each["kind"] == "WorkflowTemplate"}
    for path, template in templates.items():
        found = mistakes(template, limits)
        failed |= bool(found)
        for line in found:
            print(f"{path}: {line}")
    limited = next(each for each in templates.values() if any("synchronization" in job for job in each["spec"]["templates"]))
    for field, bad in [*planted(next(iter(templates.values()))), *planted_limits(limited)]:
        count += 1
        found = mistakes(bad, limits)
        if not any(line.startswith(field) for line in found):
            failed = True
            print(f"planted mistake at {field} was not refused: {found}")
    print(f"{len(templates)} templates held against Argo's classes, {count} planted mistakes")
    return 65 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1:]))
