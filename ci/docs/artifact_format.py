"""Writes docs/artifact-format.md: every key of an artifact's JSON files, from the models that read and write them;
and docs/report.schema.json, the JSON Schema of its report.

python ci/docs/artifact_format.py          write both
python ci/docs/artifact_format.py --check  exit with 1 where one is another
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from schema_tables import tables

from llmc.contracts.engine import EngineDescription
from llmc.contracts.kernels import KernelSetDescription
from llmc.contracts.manifest import Manifest
from llmc.contracts.part import Nothing, Part
from llmc.contracts.report import Report

PAGE = Path(__file__).parents[2] / "docs" / "artifact-format.md"
SCHEMA = PAGE.with_name("report.schema.json")
INTRODUCTION = """# The artifact format

<!-- Generated from llmc/contracts by ci/docs/artifact_format.py; edit those. -->

`llmc build` leaves one folder. It can be copied, published to a model hub and loaded by `llmc.runtime`; it is complete
or absent, since a build works beside it and renames the folder at the end.

| file | what it is | who reads it |
|---|---|---|
| `llmc.json` | the manifest, below: what was done, what was measured, size and SHA-256 of every other file | llmc |
| `report.html` | the report: one page that needs no network and no other file | people |
| `report.json` | the report's numbers, [below](#the-report) | programs, `llmc compare` |
| `README.md` | the model card, with the front matter of the Hugging Face hub | people, the hub |
| `config.json` | the model's configuration, with `quantization_config` | llmc, transformers, vLLM |
| `model-*.safetensors`, `model.safetensors.index.json` | the quantized weights, in the recipe's `layout` | the same, \
and ONNX Runtime, whose graph points into them |
| `tokenizer.json`, `tokenizer_config.json`, `generation_config.json`, `chat_template.jinja`, license files, … | taken \
over from the source as they are; `tokenizer.json` is made where the source has none (`made_from`, below), and \
`tokenizer_config.json` names no Python files | the same |
| `model.onnx`, `mtp.onnx`, `vision.onnx`, `model.onnx.data` | target `onnxruntime`: graphs of the model, of its \
layer for multi-token prediction and of its vision tower, and weights that no safetensors hold in the form that \
they need | ONNX Runtime |
| `genai.onnx`, `genai_config.json`, `genai.onnx.data` | target `genai`: such a graph by other names, and what it \
needs | onnxruntime-genai, optimum |
| `onnx/portable.onnx`, `onnx/portable-mtp.onnx`, `onnx/portable-vision.onnx`, `onnx/portable.onnx.data` \
| target `onnx`: the same in standard \
operators | any ONNX program |
| `engines/NAME.engine`, `engines/NAME-mtp.engine` | targets `tensorrt` and `tensorrt-rtx`: compiled engines | \
TensorRT |
| `engines/NAME.json`, `engines/NAME-mtp.json` | what each engine is for, [below](#engine-descriptions) | llmc |
| `engines/NAME.kernels.safetensors` | compiled kernels of the engines' plugins, [below](#kernel-files) | llmc |
| `reference.safetensors` | the check text as tokens, and what the original said about it, [below](#the-reference) | \
`llmc check` |
| `provenance.json` | an in-toto statement with SLSA's predicate: [what it was made of, by what, and \
how](verify.md#provenance) | programs that decide what may be used |
| `bom.cdx.json` | the same as a [bill of materials](verify.md#provenance), with a model card: CycloneDX 1.6 | \
the same |
| `model.sig` | the signature over all of these and the manifest, if somebody signed; [who, and how](verify.md#sign) | \
`llmc verify`, model-signing |

Rules for whoever reads it:

- A program uses the files that `files` lists, of the size and SHA-256 it says there, and no others. A name is relative,
  with `/` between its parts, and leads to no place outside the folder. `model.sig` is not listed: it vouches for
  `llmc.json`.
- Keys that a program does not know are to be ignored. `format_version` grows when a reader of the version before would
  go wrong.
- A key without a value in the column "default" is always there. Artifacts of format version 1 that were written before
  llmc 0.1.0 was released may spell `quantized` and the stage `quantize` with an s, and lack keys that have a default.
- The manifest has no time stamps, durations, absolute paths or host names: equal builds have equal bytes.

`llmc artifact schema` prints the manifest's JSON Schema.
"""
ENGINES = """## Engine descriptions

Each engine has a `.json` of the same name beside it.
"""
KERNELS = """## Kernel files

A safetensors file. Each cubin is a tensor of bytes, named by its SHA-256; the metadata hold under `llmc` a JSON list of
kernel sets.
"""
REPORT = """## The report

`report.json` has what `report.html` and the model card show and the terminal prints, made of the manifest and the check
text alone; [report.schema.json](report.schema.json) is its JSON Schema, which `llmc artifact schema --report`
prints, too. Parts that are not described here are those of the manifest.
"""
REFERENCE = """## The reference

`reference.safetensors` lets `llmc check` repeat the measurement without the original. It has N windows of P + 1 tokens;
position i predicts token i + 1. K is 64, or the size of the vocabulary where that is less, and S is 64. Three
tensors stand for the tokens that are not among the most likely: they are absent where there are no such tokens, and in
files of earlier llmc, of which only a lower bound of the Kullback–Leibler divergence can be told. The last three, which
such files lack, too, are what torch said of the quantized model, about the first M windows, some 4,096 tokens: what a
runtime is held against.

| tensor | type and shape | meaning |
|---|---|---|
| `input_ids` | int32 [N, P + 1] | the check text |
| `top_ids` | int32 [N, P, K] | the original's most likely tokens |
| `top_logprobs` | float32 [N, P, K] | their log-probabilities, descending |
| `true_logprobs` | float32 [N, P] | log-probability of the token that follows |
| `tail_ids` | int32 [N, P, S] | tokens drawn from the others, in proportion to their probabilities, by systematic \
sampling from likely to unlikely ones; a token may occur more than once. What chance decides depends on the window's \
number alone |
| `tail_logprobs` | float32 [N, P, S] | their log-probabilities |
| `tail_mass` | float32 [N, P] | probability of all the others together |
| `quantized_top_logprobs` | float32 [M, P, K] | the quantized model's log-probabilities of `top_ids` |
| `quantized_tail_logprobs` | float32 [M, P, S] | those of `tail_ids`, if there are any |
| `quantized_best` | int32 [M, P] | the quantized model's most likely token |

With `p` the original's probabilities, `m` the tail's mass, and `d` the difference of the two models' log-probabilities
of a token, `Σ p (d − 1 + exp(−d))` over the K tokens and `m` times the mean of `d − 1 + exp(−d)` over the S drawn ones
are an unbiased estimate of the divergence over the whole vocabulary, and never negative.

With `check: {publish_text: false}` it is not part of the artifact but lies beside it, as `NAME.reference.safetensors`,
and the manifest has its size and SHA-256 under `reference`.
"""


def page() -> str:
    """Return the page, as Markdown."""
    parts = [INTRODUCTION, "## llmc.json\n", *_tables(Manifest), ENGINES, *_tables(EngineDescription)]
    told = Manifest.model_json_schema(mode="serialization")["$defs"]
    return "\n".join([*parts, KERNELS, *_tables(KernelSetDescription), REPORT, *_tables(Report, told), REFERENCE])


def schema() -> str:
    """Return the JSON Schema of the report."""
    return json.dumps(Report.json_schema(), indent=2, ensure_ascii=False) + "\n"


def _tables(part: type[Part], without: Iterable[str] = ()) -> Iterator[str]:
    return tables(part.__name__, part.model_json_schema(mode="serialization"), {Nothing.__name__, *without})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the page is another")
    arguments = parser.parse_args()
    written = {PAGE: page(), SCHEMA: schema()}
    if arguments.check:
        raise SystemExit(any(path.read_text(encoding="utf-8") != text for path, text in written.items()))
    for path, text in written.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
