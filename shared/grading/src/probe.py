"""Prints what the grader must know about this interpreter: one JSON object."""
import ctypes
import json
import os
import sys

roots = {os.path.dirname(os.__file__), sys.executable}
roots.update(entry for entry in sys.path if entry)
with open("/proc/self/maps") as maps:
    for line in maps:
        fields = line.split(None, 5)
        if len(fields) == 6 and ".so" in fields[5]:
            roots.add(os.path.dirname(fields[5].strip()))
json.dump(
    {
        "executable": os.path.realpath(sys.executable),
        "version": ".".join(map(str, sys.version_info[:3])),
        "minor": list(sys.version_info[:2]),
        "implementation": sys.implementation.name,
        "roots": sorted({os.path.realpath(root) for root in roots if os.path.exists(root)}),
    },
    sys.stdout,
)
