"""Kedro project settings, see https://docs.kedro.org/en/stable/configure/configuration_basics/."""

import os

# Libraries read these when they are imported.
for _name, _value in {
    # no telemetry unless the user sets these
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # deprecations and hints that concern the library's callers
    "TRANSFORMERS_VERBOSITY": "error",
    # a server that does not answer is given up after 20 seconds; by default after 20 minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    # the last log lines hold it
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # the recipe pads its batches
    "UNSLOTH_DISABLE_AUTO_PADDING_FREE": "1",
    # transformers' callback would log every default of the model's and the trainer's
    # configuration beside the parameters that kedro-mlflow logs
    "MLFLOW_MAX_LOG_PARAMS": "0",
    # the project of sft.training.report_to: wandb; otherwise 'huggingface'
    "WANDB_PROJECT": "ja-instruct",
    # otherwise tokenizers warns when a process forks after using them
    "TOKENIZERS_PARALLELISM": "false",
    # Arrow's own pool keeps memory that was freed: 70 MB in a run of the filter
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}.items():
    os.environ.setdefault(_name, _value)

from ja_instruct.config_loader import CatalogConfigLoader  # noqa: E402
from ja_instruct.hooks.checks import (  # noqa: E402
    ErrorMessageHook,
    PreflightHook,
    UnansweredTasksHook,
    WorkingDirectoryHook,
)
from ja_instruct.hooks.outputs import OutputsHook, StaleOutputsHook  # noqa: E402
from ja_instruct.hooks.progress import ProgressHook  # noqa: E402
from ja_instruct.hooks.stopping import StoppedRunHook  # noqa: E402
from ja_instruct.hooks.tracking import FlatParametersMlflowHook  # noqa: E402
from kedro_freshness import FreshnessHook  # noqa: E402

# recorded with every output, since another version may make another output
LIBRARIES = (
    "torch",
    "transformers",
    "bitsandbytes",
    "peft",
    "trl",
    "unsloth",
    "tokenizers",
    "colbert-ai",
    "ragatouille",
    "bm25s",
    "pycld2",
)
# the project's subclass replaces kedro-mlflow's hook; telemetry is off
DISABLE_HOOKS_FOR_PLUGINS = ("kedro_mlflow", "kedro-telemetry")
# pluggy calls the last registered first: inputs are checked before an MLflow run is opened
_outputs = OutputsHook()
HOOKS = (
    ProgressHook(),
    FlatParametersMlflowHook(),
    StoppedRunHook(),
    UnansweredTasksHook(),
    PreflightHook(),
    StaleOutputsHook(_outputs),
    FreshnessHook(libraries=LIBRARIES),
    _outputs,
    WorkingDirectoryHook(),
    ErrorMessageHook(),
)

CONFIG_LOADER_CLASS = CatalogConfigLoader
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    # an environment holds only the keys that differ
    "merge_strategy": {"parameters": "soft", "mlflow": "soft"},
    "config_patterns": {"mlflow": ["mlflow*", "mlflow*/**", "**/mlflow*"]},
}
