"""Starting vLLM: a process for every base model, side by side, and the examination of each.

What comes out is a sampler that agrees with PyTorch, or an error that says what does not.
"""

from __future__ import annotations

import logging

from tinkerlite_server.engine.model_pool import ModelPool
from tinkerlite_server.engine.protocols import EngineLimits
from tinkerlite_server.engine.sampler import LocalSampler
from tinkerlite_server.engine.vllm_process import VllmProcess, VllmSettings, engine_fields, environment
from tinkerlite_server.engine.vllm_sampler import VllmModel, VllmSampler
from tinkerlite_server.engine.vllm_self_test import Subject, adapter_failures, failures, make_adapter
from tinkerlite_server.errors import EngineFailure

logger = logging.getLogger(__name__)

_TEST_ADAPTER = "self-test"


def start_vllm(
    pool: ModelPool, local: LocalSampler, limits: EngineLimits, settings: VllmSettings
) -> VllmSampler:
    """A sampler over all models of the pool.

    Raises:
        EngineFailure: vLLM is missing or does not start, or fails its examination.
        BadRequest: an option is not one.
    """
    fields = {name: engine_fields(info, limits, settings.options) for name, info in pool.catalog.items()}
    surroundings = environment(limits, pool.device.type)
    processes: dict[str, VllmProcess] = {}
    try:
        for name in fields:
            logger.info("starting vLLM for %s", name)
            processes[name] = VllmProcess(settings.python, fields[name], surroundings)
        models: dict[str, VllmModel] = {}
        for name, process in processes.items():
            version, longest = process.wait_until_ready()
            models[name] = VllmModel(process=process, longest=longest, max_rank=fields[name]["max_lora_rank"])
            logger.info("vLLM %s has %s", version, name)
        sampler = VllmSampler(pool, local, models)
        for name, model in models.items():
            _examine(Subject(sampler, local, pool.get(name)), sampler, model)
    except BaseException:
        for process in processes.values():
            process.close()
        raise
    return sampler


def _examine(subject: Subject, sampler: VllmSampler, model: VllmModel) -> None:
    """Raise what fails; find out whether vLLM adapts the unembedding."""
    name = subject.model.info.name
    found = failures(subject)
    of_unembedding = _try_adapter(subject, sampler, model, train_unembed=True)
    if of_unembedding:
        model.adapts_unembedding = False
        found += _try_adapter(subject, sampler, model, train_unembed=False)
    if found:
        raise EngineFailure(
            f"vLLM fails the start-up self-test on {name}: {'; '.join(found)}. Leave --sampler vllm out: the "
            "PyTorch sampler is right on this model"
        )
    logger.info(
        "vLLM passed its self-test on %s; adapters up to rank %d%s",
        name,
        model.max_rank,
        "" if model.adapts_unembedding else " that leave the unembedding alone",
    )


def _try_adapter(
    subject: Subject, sampler: VllmSampler, model: VllmModel, *, train_unembed: bool
) -> list[str]:
    adapter = make_adapter(subject.model, train_unembed=train_unembed, max_rank=model.max_rank)
    refusal = sampler.offer_adapter(_TEST_ADAPTER, subject.model.info.name, adapter)
    try:
        if refusal is not None:
            return [refusal]
        return adapter_failures(subject, _TEST_ADAPTER)
    finally:
        sampler.drop_adapter(_TEST_ADAPTER)
