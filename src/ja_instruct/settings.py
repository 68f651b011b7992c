"""Kedro project settings, see https://docs.kedro.org/en/stable/configure/configuration_basics/."""

import os

# No library reports home unless the user asks it to. Set before any of them is imported.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # deprecations and hints of the library to its own callers
    "TRANSFORMERS_VERBOSITY": "error",
    # the recipe pads its batches
    "UNSLOTH_DISABLE_AUTO_PADDING_FREE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "DO_NOT_TRACK": "1",
    # transformers' callback would log every default of the model's and the trainer's
    # configuration beside the parameters that kedro-mlflow logs
    "MLFLOW_MAX_LOG_PARAMS": "0",
    # tokenizers warns when a process forks after using them; nothing here relies on both
    "TOKENIZERS_PARALLELISM": "false",
}.items():
    os.environ.setdefault(_name, _value)

from kedro.config import OmegaConfigLoader  # noqa: E402

from ja_instruct.hooks import FlatParametersMlflowHook, PreflightHook, ProgressHook  # noqa: E402

# the project's subclass takes kedro-mlflow's place; telemetry is off
DISABLE_HOOKS_FOR_PLUGINS = ("kedro_mlflow", "kedro-telemetry")
# pluggy calls the last registered first: inputs are checked before an MLflow run is opened
HOOKS = (ProgressHook(), FlatParametersMlflowHook(), PreflightHook())

CONFIG_LOADER_CLASS = OmegaConfigLoader
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    # an environment states only the parameters that differ
    "merge_strategy": {"parameters": "soft"},
    "config_patterns": {"mlflow": ["mlflow*", "mlflow*/**", "**/mlflow*"]},
}
