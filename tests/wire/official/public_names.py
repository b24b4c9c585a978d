"""Print what the official `tinker` SDK offers its users, as JSON; runs in that SDK's environment.

    python public_names.py

Classes by name, with their public methods and the names of the parameters.
"""

import inspect
import json

import tinker

CLIENTS = ("ServiceClient", "TrainingClient", "SamplingClient", "RestClient")


def methods(kind):
    return {
        name: [each for each in inspect.signature(member).parameters if each not in ("self", "kwargs")]
        for name, member in inspect.getmembers(kind)
        if callable(member) and (not name.startswith("_") or name == "__init__")
    }


def main():
    clients = {name: methods(getattr(tinker, name)) for name in CLIENTS}
    types = [name for name in dir(tinker.types) if name[0].isupper()]
    print(json.dumps({"clients": clients, "names": list(tinker.__all__), "types": types}))


main()
