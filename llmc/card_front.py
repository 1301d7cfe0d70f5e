"""The front matter of a model card: what the Hugging Face hub files a model by."""

from __future__ import annotations

import re
from typing import Any

from llmc.contracts.manifest import SourceRecord
from llmc.contracts.report import Report
from llmc.convert.families import families
from llmc.convert.formats import layout
from llmc.convert.quantized_weight import bits_of
from llmc.hub import HubName
from llmc.quant.schemes import scheme

# What the hub takes as `license`, see its documentation; anything else is `other`, with a name.
LICENSES = frozenset(
    name
    for line in (
        "afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0",
        "bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5",
        "cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0",
        "cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-",
        "permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0",
        "etalab-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0",
        "grok2-community h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2",
        "llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 open-mdw openrail openrail++ osl-3.0",
        "pddl postgresql unlicense wtfpl zlib",
    )
    for name in line.split()
)
_HUB_TEXT = re.compile(r"hub:([\w.-]+(?:/[\w.-]+)?)(?=[:@]|$)")
_LICENSE_FILE = re.compile(r"(?i)licen[cs]e[\w.-]*")
_TRANSFORMERS = "transformers"


def front_matter(report: Report) -> dict[str, Any]:
    """Return it, keys in reading order; it says only what is known, and equal reports have equal ones."""
    source = report.source
    front: dict[str, Any] = {**license_keys(source, [*report.files])}
    if source.revision is not None and HubName.parse(source.id):  # not a folder's name
        changed = any(role.quantized for role in report.quantized.values())
        front |= {"base_model": [source.id], "base_model_relation": "quantized" if changed else "finetune"}
    task = "image-text-to-text" if report.model.images else "text-generation"
    library = _TRANSFORMERS if loads_in_transformers(report) else "llmc"
    front |= {"pipeline_tag": task, "library_name": library}
    if data := datasets(report):
        front["datasets"] = data
    return front | {"tags": tags(report)}


def license_keys(source: SourceRecord, files: list[str]) -> dict[str, str]:
    """Return the original's license as the hub wants it told; nothing where the original says nothing."""
    if source.license is None:
        return {}
    name = source.license.strip().lower()
    if name in LICENSES:
        return {"license": name}
    own = source.license_name or (f"license of {source.id}" if name in ("other", "unknown") else name)
    keys = {"license": "other", "license_name": re.sub(r"[^a-z0-9.-]+", "-", own.lower()).strip("-.") or "other"}
    file = next((each for each in sorted(files) if _LICENSE_FILE.fullmatch(each)), None)
    link = source.license_link
    if link and (re.match(r"https?://", link) or link in files):
        keys["license_link"] = link
    elif file:
        keys["license_link"] = file
    return keys


def tags(report: Report) -> list[str]:
    """Return what people search for: layout, methods, bits, formats, targets, MTP."""
    specs = {name: scheme(name).spec for role in report.quantized.values() for name in role.schemes}
    used = {each.method for each in report.treatments if each.scheme}
    methods = sorted(used & {"gptq", "gptaq", "yaqa", "rtn"})
    bits = [f"{count}-bit" for count in sorted({bits_of(spec.code_type) for spec in specs.values()})]
    kinds = sorted({name.partition("-")[0] for name in specs})
    targets = [name for name in ("onnx", "tensorrt") if any(each.startswith(name) for each in _made(report))]
    pruned = [report.pruned.method, "pruned"] if report.pruned else []
    mtp = ["mtp"] if report.model.num_mtp_layers else []
    return list(dict.fromkeys(["llmc", report.recipe.layout, *methods, *bits, *kinds, *pruned, *targets, *mtp]))


def datasets(report: Report) -> list[str]:
    """Return the data sets of the hub that the model was calibrated on."""
    read = report.texts.read.get("calibration", [])
    return sorted({match[1] for each in read if (match := _HUB_TEXT.match(each.text))})


def obstacle(report: Report) -> str:
    """Return why transformers does not load the safetensors; empty: it does, if it reads the layout at all."""
    roles, known = report.quantized, layout(report.recipe.layout)
    experts = roles.get("experts")
    specs = {role: [scheme(name).spec for name in counts.schemes] for role, counts in roles.items()}
    found = families.get(report.model.family).obstacle(known.one_by_one(specs))
    return found or known.obstacle(specs, experts is not None and experts.quantized < experts.parameters)


def loads_in_transformers(report: Report) -> bool:
    """Return whether it loads the safetensors."""
    return not obstacle(report) and _TRANSFORMERS in layout(report.recipe.layout).readers


def _made(report: Report) -> list[str]:
    return [name for name, target in report.targets.items() if target.skipped is None]
