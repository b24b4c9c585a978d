"""A pytest plugin under which `import tinker` gives tinkerlite, for tests that were written for that SDK.

Knows the modules of that SDK from which such code imports. It is for tests alone: users who want
that SDK's own package have it, and it drives this project's server as it is.
"""

from __future__ import annotations

import sys

import tinkerlite.compat
import tinkerlite.rest_client
import tinkerlite.types

MODULES = {
    "tinker": tinkerlite,
    "tinker.types": tinkerlite.types,
    "tinker.types.tensor_data": tinkerlite.types,
    "tinker.types.image_chunk": tinkerlite.types,
    "tinker.lib": tinkerlite,
    "tinker.lib.public_interfaces": tinkerlite,
    "tinker.lib.public_interfaces.api_future": tinkerlite.compat,
    "tinker.lib.public_interfaces.rest_client": tinkerlite.rest_client,
}

sys.modules.update(MODULES)
