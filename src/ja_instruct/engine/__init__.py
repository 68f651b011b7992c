r"""Greedy generation for many prompts at once, in as much memory as there is.

It needs no Kedro project, session or catalog::

    from ja_instruct.engine import EngineParameters, load_engine

    engine = load_engine(
        "data/06_models/demo/quantized_model",
        "data/06_models/demo/adapter",
        EngineParameters(device="cpu", max_new_tokens=64),
    )
    prompts = ["質問: 日本の首都は?\n回答: ", "質問: 富士山の高さは?\n回答: "]
    for position, answer in engine.generate(prompts):
        print(prompts[position], answer.text)

Why the project has an engine of its own: transformers' continuous batching drops the repetition
penalty with a warning. vLLM with 4-bit bitsandbytes weights and a LoRA adapter is half as fast on a
model of gemma-2-27b's size.

The modules, in the order in which a prompt passes them: ``backends`` loads a model and chooses an
engine. ``batched`` sizes the batch (``batch_size``) and prepares the model (``weights``,
``attention``, ``fused_layers``, ``nf4_layers``). ``engine`` generates, with ``kv_cache`` and
``sampler``. ``answer`` decodes the tokens. ``kernels`` holds the Triton kernels. Only these need
torch; importing the package does not.
"""

from ja_instruct.engine.answer import Answer
from ja_instruct.engine.backends import Backend, load_engine
from ja_instruct.engine.parameters import BatchingParameters, EngineParameters

__all__ = ["Answer", "Backend", "BatchingParameters", "EngineParameters", "load_engine"]
