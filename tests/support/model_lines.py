"""The model lines that people bring, each with the published configurations that belong to it.

A line is a generation of a model that people call by one name: its sizes and re-releases of one architecture. Adding a
family to llmc adds nothing here, as long as transformers has a class of the configuration's `model_type`: every line is
tried, and one that is not accepted is a hole whose reason is llmc's own message.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parents[1] / "data" / "configs"


@dataclass(frozen=True)
class ModelLine:
    """One line.

    Attributes:
        name: what people call it
        configs: files of tests/data/configs without `.json`; the ladder is climbed with the first
        additional: likewise, of tests/data/configs/additional: there is none of the line among the published ones
        witness: what to change in config.json so that transformers, which does not know the checkpoint's `model_type`,
            makes the same model of it; None: it cannot
        spelled: names of tensors that the released checkpoints have, where they are not Llama's; `#` is a number
        text_field: the object of config.json that the language model is made of, where transformers has no class for
            the whole
        respelled: (as `save_pretrained` writes it, as it was released): beginnings of tensors' names
        mtp_unused: whether its checkpoints have layers for multi-token prediction that are kept and not used
    """

    name: str
    configs: tuple[str, ...] = ()
    additional: tuple[str, ...] = ()
    witness: dict[str, Any] | None = field(default_factory=dict)
    spelled: tuple[str, ...] = ()
    respelled: tuple[tuple[str, str], ...] = ()
    mtp_unused: bool = False
    text_field: str | None = None

    def known(self, config: dict[str, Any]) -> dict[str, Any]:
        """What of a configuration transformers makes the same model, or language model, of."""
        assert self.witness is not None
        return (config[self.text_field] if self.text_field else config) | self.witness

    @property
    def tested(self) -> str:
        """The configuration that climbs."""
        return (self.configs or self.additional)[0]


@functools.cache
def _text(name: str) -> str:
    file = CONFIGS / f"{name}.json"
    return (file if file.exists() else CONFIGS / "additional" / f"{name}.json").read_text(encoding="utf-8")


def published_config(name: str) -> dict[str, Any]:
    """A fresh copy of a configuration, by its file name."""
    config: dict[str, Any] = json.loads(_text(name))
    return config


def published_names(additional: bool = False) -> list[str]:
    """All published configurations, and the additional ones where they are asked for."""
    return sorted(file.stem for file in (CONFIGS.rglob if additional else CONFIGS.glob)("*.json"))


# Quantized by ModelOpt, which says so beside config.json, in hf_quant_config.json.
DESCRIBED_BESIDE = {
    "nvidia--DeepSeek-V3.1-NVFP4": "NVFP4",
    "nvidia--DeepSeek-V3.2-NVFP4": "NVFP4",
    "nvidia--GLM-5-NVFP4": "NVFP4",
    "nvidia--Llama-3.1-70B-Instruct-FP8": "FP8",
    "nvidia--Qwen3-235B-A22B-NVFP4": "NVFP4",
}
_KIMI: dict[str, Any] = {"model_type": "deepseek_v3"}
_QWEN2: dict[str, Any] = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}


def _of(owner: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{owner}--{name}" for name in names)


LINES = (
    ModelLine("DeepSeek-V3, R1", _of("deepseek-ai", "DeepSeek-V3", "DeepSeek-R1")),
    ModelLine("DeepSeek-V3.1", ("deepseek-ai--DeepSeek-V3.1", "nvidia--DeepSeek-V3.1-NVFP4")),
    ModelLine(
        "R1-Distill-Qwen",
        _of("deepseek-ai", *(f"DeepSeek-R1-Distill-Qwen-{size}" for size in ("7B", "1.5B", "32B"))),
    ),
    ModelLine("R1-Distill-Llama", _of("deepseek-ai", *(f"DeepSeek-R1-Distill-Llama-{size}" for size in ("8B", "70B")))),
    ModelLine(
        "Llama-3.1",
        (
            *_of("meta-llama", "Meta-Llama-3.1-8B", "Meta-Llama-3.1-70B", "Meta-Llama-3.1-405B"),
            "nvidia--Llama-3.1-70B-Instruct-FP8",
        ),
    ),
    ModelLine("Llama-3.2", _of("meta-llama", "Llama-3.2-3B-Instruct", "Llama-3.2-1B.bridge")),
    ModelLine("Llama-3.3", _of("meta-llama", "Llama-3.3-70B-Instruct")),
    ModelLine("Qwen2.5", _of("Qwen", "Qwen2.5-7B-Instruct", "Qwen2.5-0.5B", "Qwen2.5-72B-Instruct")),
    ModelLine("SmolLM2", ("HuggingFaceTB--SmolLM2-1.7B",)),
    ModelLine("Moonlight", ("moonshotai--Moonlight-16B-A3B",)),
    ModelLine("Kimi-K2", ("moonshotai--Kimi-K2-Instruct",), witness=_KIMI),
    ModelLine("Kimi-K2-Thinking", additional=("moonshotai--Kimi-K2-Thinking",), witness=_KIMI),
    ModelLine("GLM-4.7-Flash", additional=("zai-org--GLM-4.7-Flash",)),
    ModelLine("Mistral-7B v0.3", ("mistralai--Mistral-7B-Instruct-v0.3",)),
    ModelLine("Mistral-Small-24B", ("mistralai--Mistral-Small-24B-Instruct-2501",)),
    ModelLine("Ministral-8B", ("mistralai--Ministral-8B-Instruct-2410",)),
    ModelLine("Seed-OSS", additional=("ByteDance-Seed--Seed-OSS-36B-Instruct",)),
    ModelLine(
        "Qwen3",
        _of(
            "Qwen",
            *("Qwen3-8B", "Qwen3-0.6B", "Qwen3-1.7B", "Qwen3-32B", "Qwen3-32B-FP8", "Qwen3-32B-FP8-Static-PerTensor"),
        ),
    ),
    ModelLine("R1-0528-Qwen3-8B", additional=("deepseek-ai--DeepSeek-R1-0528-Qwen3-8B",)),
    ModelLine("Qwen3-30B-A3B", _of("Qwen", "Qwen3-30B-A3B", "Qwen3-30B-A3B-FP8")),
    ModelLine(
        "Qwen3-235B-A22B", (*_of("Qwen", "Qwen3-235B-A22B", "Qwen3-235B-A22B-FP8"), "nvidia--Qwen3-235B-A22B-NVFP4")
    ),
    ModelLine("Qwen3-Coder-480B", ("Qwen--Qwen3-Coder-480B-A35B-Instruct",)),
    ModelLine("OLMoE", ("allenai--OLMoE-1B-7B.bridge",)),
    ModelLine("GLM-4.5, 4.6, 4.7", ("zai-org--GLM-4.5.bridge",)),
    ModelLine("GLM-4.5-Air", ("zai-org--GLM-4.5-Air.bridge",)),
    ModelLine("DeepSeek-V3.2", ("deepseek-ai--DeepSeek-V3.2", "nvidia--DeepSeek-V3.2-NVFP4")),
    ModelLine(
        "GLM-5, 5.1",
        (
            *_of("zai-org", "GLM-5", "GLM-5-FP8", "GLM-5.1", "GLM-5.1-FP8"),
            *_of("nvidia", "GLM-5-NVFP4", "GLM-5.1-NVFP4"),
        ),
    ),
    ModelLine("GLM-5.2", (*_of("zai-org", "GLM-5.2", "GLM-5.2-FP8"), "nvidia--GLM-5.2-NVFP4")),
    ModelLine(
        "Mixtral",
        _of("mistralai", "Mixtral-8x7B-v0.1", "Mixtral-8x22B-v0.1"),
        spelled=("model.layers.#.block_sparse_moe.experts.#.w2.weight", "model.layers.#.block_sparse_moe.gate.weight"),
    ),
    ModelLine(
        "MiniMax-M2.x",
        (
            *_of("MiniMaxAI", "MiniMax-M2", "MiniMax-M2.5", "MiniMax-M2.7"),
            *_of("nvidia", "MiniMax-M2.5-NVFP4", "MiniMax-M2.7-NVFP4"),
        ),
        spelled=(
            "model.layers.#.block_sparse_moe.experts.#.w2.weight",
            "model.layers.#.block_sparse_moe.e_score_correction_bias",
        ),
    ),
    ModelLine("DeepSeek-V2-Lite", ("deepseek-ai--DeepSeek-V2-Lite-Chat",)),
    ModelLine(
        "Kimi-K2.5, 2.6, 2.7",
        (
            "moonshotai--Kimi-K2.5",
            *_of("nvidia", "Kimi-K2.5-NVFP4", "Kimi-K2.6-NVFP4", "Kimi-K2.7-Code-NVFP4"),
        ),
        witness={"tie_word_embeddings": False, "projection_hidden_size": 32},
        spelled=("language_model.model.layers.#.self_attn.kv_b_proj.weight", "language_model.lm_head.weight"),
        respelled=(
            ("language_model.model.blocks.", "language_model.model.layers."),
            ("model.mm_projector.", "mm_projector."),
        ),
    ),
    ModelLine(
        "Mistral-Small-3.x",
        additional=("mistralai--Mistral-Small-3.1-24B-Instruct-2503",),
        spelled=("language_model.model.layers.#.self_attn.q_proj.weight", "language_model.lm_head.weight"),
    ),
    ModelLine(
        "NVLM-D-72B",
        ("nvidia--NVLM-D-72B",),
        spelled=("language_model.model.layers.#.self_attn.q_proj.bias", "language_model.lm_head.weight"),
        respelled=(("model.", "language_model.model."), ("lm_head.", "language_model.lm_head.")),
        text_field="llm_config",
    ),
    ModelLine(
        "Qwen3-VL",
        (
            *_of("Qwen", *(f"Qwen3-VL-{size}-Instruct" for size in ("8B", "2B", "4B", "32B"))),
            "Qwen--Qwen3-VL-32B-Thinking",
        ),
        spelled=("model.language_model.layers.#.self_attn.q_norm.weight",),
    ),
    ModelLine(
        "Phi-4",
        ("microsoft--phi-4",),
        spelled=("model.layers.#.self_attn.qkv_proj.weight", "model.layers.#.mlp.gate_up_proj.weight"),
    ),
    ModelLine("Mistral-7B v0.1", additional=("mistralai--Mistral-7B-v0.1",)),
    ModelLine(
        "Phi-3-4k",
        additional=("microsoft--Phi-3-mini-4k-instruct",),
        spelled=("model.layers.#.self_attn.qkv_proj.weight", "model.layers.#.mlp.gate_up_proj.weight"),
    ),
    ModelLine("SmolLM3", ("HuggingFaceTB--SmolLM3-3B",)),
    ModelLine("Phi-3.5", ("microsoft--Phi-3.5-mini-instruct",)),
    ModelLine("Phi-4-mini", ("microsoft--Phi-4-mini-instruct",)),
    ModelLine("Granite", additional=("ibm-granite--granite-3.1-8b-instruct",)),
    ModelLine(
        "Granite MoE",
        ("ibm-granite--granite-3.1-1b-a400m-instruct",),
        spelled=("model.layers.#.block_sparse_moe.input_linear.weight",),
    ),
    ModelLine("DeepSeek-V2, V2.5", additional=("deepseek-ai--DeepSeek-V2.5",)),
    ModelLine("MiMo-7B", ("XiaomiMiMo--MiMo-7B-Base",), witness=_QWEN2),
    ModelLine(
        "Qwen3-VL-MoE",
        _of("Qwen", "Qwen3-VL-30B-A3B-Instruct", "Qwen3-VL-235B-A22B-Instruct"),
        spelled=("model.language_model.layers.#.mlp.experts.gate_up_proj",),
    ),
    ModelLine("OLMo-2", ("allenai--OLMo-2-1124-7B",)),
    ModelLine("OLMo-3", additional=("allenai--Olmo-3-7B-Instruct",)),
    ModelLine("Gemma-2", ("google--gemma-2-9b-it",)),
    ModelLine("Gemma-3 text", _of("google", "gemma-3-1b.bridge", "gemma-3-27b-text.bridge")),
    ModelLine(
        "Gemma-3 VL",
        additional=("google--gemma-3-27b-it",),
        spelled=("language_model.model.layers.#.self_attn.q_proj.weight",),
    ),
    ModelLine(
        "Ministral-3, Mistral-Large-3",
        additional=("mistralai--Ministral-3-8B-Instruct-2512",),
        spelled=("language_model.model.layers.#.self_attn.q_proj.weight", "language_model.lm_head.weight"),
    ),
    ModelLine("gpt-oss", _of("openai", "gpt-oss-20b", "gpt-oss-120b")),
    ModelLine("Qwen3-Next", ("Qwen--Qwen3-Next-80B-A3B.bridge",), mtp_unused=True),
    ModelLine("Qwen3.5, 3.6", ("Qwen--Qwen3.5-27B", "nvidia--Qwen3.6-27B-NVFP4"), mtp_unused=True),
    ModelLine(
        "Qwen3.5, 3.6 MoE",
        (
            *_of("Qwen", "Qwen3.5-35B-A3B", "Qwen3.5-122B-A10B", "Qwen3.5-397B-A17B"),
            *_of("nvidia", "Qwen3.5-122B-A10B-NVFP4", "Qwen3.5-397B-A17B-NVFP4", "Qwen3.6-35B-A3B-NVFP4"),
        ),
        mtp_unused=True,
    ),
    ModelLine("Kimi-K3, Kimi-Linear", ("moonshotai--Kimi-K3",)),
    ModelLine("MiMo-V2-Flash", ("XiaomiMiMo--MiMo-V2-Flash",), mtp_unused=True),
    ModelLine("Llama-4", _of("meta-llama", *(f"Llama-4-{n}-Instruct" for n in ("Scout-17B-16E", "Maverick-17B-128E")))),
    ModelLine("Gemma-4", ("google--gemma-4-26B-A4B", *_of("nvidia", "Gemma-4-26B-A4B-NVFP4", "Gemma-4-31B-IT-NVFP4"))),
    ModelLine("Nemotron-Super (NAS)", ("nvidia--Llama-3_3-Nemotron-Super-49B-v1",)),
    ModelLine(
        "Nemotron-3",
        _of(
            "nvidia",
            *(f"NVIDIA-Nemotron-3-Nano-30B-A3B-{kind}" for kind in ("BF16", "NVFP4")),
            *(f"NVIDIA-Nemotron-3-Super-120B-A12B-{kind}" for kind in ("FP8", "NVFP4")),
            *(f"NVIDIA-Nemotron-3-Ultra-550B-A55B-{kind}" for kind in ("BF16", "FP8", "NVFP4")),
            "NVIDIA-Nemotron-3.5-Lightning-30B-A3B-NVFP4",
            "Nemotron-H-56B-Base-8K",
        ),
    ),
    ModelLine("MiniMax-M3", ("MiniMaxAI--MiniMax-M3", "nvidia--MiniMax-M3-NVFP4")),
    ModelLine("Step-3.7", _of("stepfun-ai", "Step-3.7-Flash", "Step-3.7-Flash-FP8")),
    ModelLine(
        "DeepSeek-V4",
        (
            *_of("deepseek-ai", "DeepSeek-V4-Flash", "DeepSeek-V4-Pro"),
            *_of("sgl-project", "DeepSeek-V4-Flash-FP8", "DeepSeek-V4-Pro-FP8"),
            *_of("nvidia", "DeepSeek-V4-Flash-NVFP4", "DeepSeek-V4-Pro-NVFP4"),
        ),
    ),
)
