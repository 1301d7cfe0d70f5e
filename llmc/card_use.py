"""How an artifact is loaded, as its model card tells: in llmc, transformers, vLLM and ONNX Runtime, as far as its
layout allows; and what of it nobody measured.
"""

from __future__ import annotations

import re

from llmc.card_front import loads_in_transformers, obstacle
from llmc.contracts.report import Report
from llmc.convert.formats import layout

_GPU_TARGETS = ("tensorrt-rtx", "tensorrt")


def usage(report: Report) -> str:
    """Return the section about loading it, without its heading."""
    return "\n".join([_llmc(report), _safetensors(report), *_onnxruntime(report), *_engines(report)])


def limits(report: Report) -> str:
    """Return what holds for the original and holds here, too."""
    return (
        "What it is for, what it must not be used for, and its biases are the original's: read its card. Nothing of it "
        "was trained anew; pruning and quantization change what it says as measured above, and in ways that the check "
        "text does not show.\n"
    )


def not_measured(report: Report) -> list[str]:
    """Return what a reader might take for measured, and is not."""
    checks, found = report.measured, []
    if checks is None:
        found.append("how far it is from the original: the build had no check")
    elif checks.computed_by == "torch":
        found.append("what a runtime makes of the weights: the comparison was computed in torch")
    if report.audit is None:
        found.append("answers to questions: no benchmark was run on it (`llmc eval` asks it and the original the same)")
    elif report.audit.limit is not None:
        found.append(f"more than {report.audit.limit:,} samples of each benchmark")
    length = report.recipe.check.length if report.recipe.check else None
    if checks is not None and length is not None and length < report.model.max_position_embeddings:
        found.append(
            f"texts of more than {length:,} tokens, of the {report.model.max_position_embeddings:,} that the model was "
            "made for (`llmc check --long`)"
        )
    if checks is not None:
        found.append("other languages, subjects and styles than those of the check text")
    if report.model.images:
        found.append("what it says about images")
    if report.model.num_mtp_layers and (checks is None or checks.mtp_acceptance is None):
        found.append("how often drafts of its MTP layer are accepted")
    made = [name for name in _GPU_TARGETS if name in report.targets and report.targets[name].skipped is None]
    if made:
        found.append(f"engines ({', '.join(made)}): they are compiled, and were run on no GPU while it was built")
    if report.speed is None:
        found.append("speed and memory (`llmc bench`)")
    return found


def _place(report: Report) -> str:
    """What the repository is called, most likely."""
    name = re.sub(r"[^\w.-]+", "-", report.name, flags=re.ASCII).strip("-.")
    return f"OWNER/{name or 'NAME'}"


def _llmc(report: Report) -> str:
    place = _place(report)
    return (
        f"In llmc, which needs neither torch nor the original for it; `{place}` is this repository, or a folder:\n\n"
        "```python\nfrom llmc.runtime import load\n\n"
        f'with load("{place}") as model:\n'
        '    for piece in model.stream("The first", max_new_tokens=64):\n        print(piece, end="")\n```\n\n'
        f"or `llmc run {place} --prompt 'The first'`; `llmc pull {place}` gets and verifies it, `llmc check {place}` "
        "repeats the measurement.\n"
    )


def _safetensors(report: Report) -> str:
    known, place = layout(report.recipe.layout), _place(report)
    told = f"The safetensors are in the layout {known.name}: "
    if reason := obstacle(report):
        return f"{told}transformers does not load them, as {reason}.\n"
    told += f"{known.readers}.\n"
    if loads_in_transformers(report):
        told += (
            "\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{place}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{place}")\n```\n'
        )
    if known.in_vllm:
        told += (
            f"\nvLLM reads this layout, `vllm serve {place}`; whether it has kernels for these schemes on your GPU was "
            "not tried.\n"
        )
    return told


def _onnxruntime(report: Report) -> list[str]:
    target = report.targets.get("onnxruntime")
    if target is None or target.skipped is not None:
        return []
    graph = target.files.get("main", "model.onnx")
    return [
        f"ONNX Runtime runs `{graph}` as it is, in a folder with the safetensors that it points into: "
        f'`onnxruntime.InferenceSession("{graph}")`. Its inputs are token ids, places and the cache, which is written '
        "in place; llmc's own loop is shorter.\n"
    ]


def _engines(report: Report) -> list[str]:
    made = [name for name in _GPU_TARGETS if name in report.targets and report.targets[name].skipped is None]
    told = "are for the GPUs that their names tell, and for the version of TensorRT that built them"
    return [f"Engines ({', '.join(made)}) {told}.\n"] if made else []
