"""SkyRL's server of the protocol, in its own environment.

    python -m benchmarks.alternatives.skyrl_launcher api PORT CONFIGURATION
    python -m benchmarks.alternatives.skyrl_launcher engine ARGUMENT ...      called by the former

SkyRL starts its engine through `uv run`, which would resolve an environment anew. Here the interpreter that
is running starts it. Everything else is as SkyRL has it.
"""

from __future__ import annotations

import json
import runpy
import sys
import typing
from collections.abc import Sequence
from typing import Any

import typing_extensions

_ENGINE = "skyrl.tinker.engine"


def main(argv: Sequence[str]) -> None:
    """Serve on a loopback port until interrupted; CONFIGURATION is the engine's, as JSON."""
    # pydantic needs this one before Python 3.12, and SkyRL takes the other whatever Python it runs on.
    typing.TypedDict = typing_extensions.TypedDict
    part, *arguments = argv
    if part == "engine":
        sys.argv = [_ENGINE, *arguments]
        runpy.run_module(_ENGINE, run_name="__main__")
    else:
        _serve(int(arguments[0]), json.loads(arguments[1]))


def _serve(port: int, configuration: dict[str, Any]) -> None:
    import uvicorn
    from skyrl.tinker import api  # pyright: ignore[reportMissingImports]
    from skyrl.tinker.config import EngineConfig, config_to_argv  # pyright: ignore[reportMissingImports]

    def engine_command(_parent: list[str], config: Any) -> list[str]:
        return [sys.executable, "-m", __spec__.name, "engine", *config_to_argv(config)]

    api._build_uv_run_cmd_engine = engine_command
    api.app.state.engine_config = EngineConfig.model_validate(configuration)
    uvicorn.run(api.app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main(sys.argv[1:])
