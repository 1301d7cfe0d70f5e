"""report.json: what an artifact's report says, in numbers. The page report.html, the model card and the terminal take
theirs from here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from llmc.contracts.against import AgainstRecord
from llmc.contracts.audit import AuditRecord
from llmc.contracts.manifest import (
    BudgetRecord,
    Checks,
    ModelRecord,
    Pruned,
    QuantizedRole,
    RecipeRecord,
    Sizes,
    SourceRecord,
    TargetRecord,
    TextsRecord,
    TokenizerRecord,
)
from llmc.contracts.part import Count, File, FileName, Number, Part

REPORT_VERSION = 1


class WorstInText(Part):
    """One of the tokens that suffered most, in text."""

    before: str = Field(description="what stands in front of it")
    token: str = Field(description="the token")
    kl: Number = Field(description="divergence there, in nats")
    p_original: Number = Field(description="probability of the token, by the original")
    p: Number = Field(description="by the artifact")


class Treatment(Part):
    """Modules that were treated alike."""

    role: str = Field(description="role of their weights")
    scheme: str = Field(description="name of the scheme")
    method: str = Field(description="gptq, gptaq, yaqa, rtn, or `kept as stored`")
    modules: Count = Field(description="how many these are")
    error_median: Number = Field(description="median of their relative squared errors: see `error` in llmc.json")
    error_largest: Number = Field(description="the largest")


class LayerSummary(Part):
    """One layer: how far it is from the original's, and how well its modules were rounded."""

    layer: Count = Field(description="its number, from 0; layers for multi-token prediction follow the others")
    error: Number | None = Field(
        default=None,
        description="relative distance of the hidden states behind it from the original's, over the check text; "
        "absent: not measured, as of layers for multi-token prediction",
    )
    cosine: Number | None = Field(default=None, description="mean cosine of the angle between them")
    modules: Count = Field(description="how many of its modules were quantized")
    module_error_median: Number | None = Field(default=None, description="median of their relative squared errors")
    module_error_largest: Number | None = Field(default=None, description="the largest")
    largest_in: str | None = Field(default=None, description="the module that has it")


class ExpertsOfLayer(Part):
    """What experts of one layer are given to do. They go by their numbers in the original."""

    layer: Count = Field(description="number of the layer, from 0")
    measured_on: Literal["check", "calibration"] = Field(description="the text that `load_original` was counted on")
    load_original: list[Number] = Field(description="share of all choices that fall on each expert, in the original")
    load: list[Number] = Field(default=[], description="the same in the artifact, where it was measured")
    removed: list[Count] = Field(default=[], description="experts that were pruned")
    agreement: Number | None = Field(
        default=None, description="share of the original's choices that the artifact makes, too"
    )
    errors: list[Number | None] = Field(
        default=[], description="relative distance of each expert's outputs from the original expert's"
    )


class TimingRecord(Part):
    """One size of batch, prompt and answer."""

    batch: Count = Field(description="prompts at once")
    prompt_tokens: Count = Field(description="length of each")
    new_tokens: Count = Field(description="length of each answer")
    draft_tokens: Count = Field(description="drafts a step")
    prefill: Number = Field(description="prompt tokens a second")
    decode: Number = Field(description="new tokens a second after the first, all rows together")
    tokens_per_step: Number = Field(description="new tokens of a row per pass of the main model")
    acceptance: Number | None = Field(default=None, description="share of drafts that the model agreed to")


class SpeedRecord(Part):
    """What `llmc bench` measured on some machine."""

    backend: str = Field(description="what ran it, and where")
    load_seconds: Number = Field(description="time to load it")
    memory_loaded: Count = Field(description="bytes of memory when it was loaded")
    memory_peak: Count = Field(description="bytes of memory at most")
    cache_bytes_per_token: Number = Field(description="bytes of cache for a token of a row")
    timings: list[TimingRecord] = Field(description="one for each size")


class Report(Part):
    """What was done to a model and what it cost. Made of llmc.json and the check text alone."""

    format_version: Annotated[int, Field(ge=1)] = Field(description="1; a program refuses what is newer than it knows")
    llmc_version: str = Field(description="version of llmc that built the artifact")
    name: str = Field(description="name of the recipe")
    verdict: Literal["passed", "missed", "no limits", "not measured"] = Field(description="whether it keeps its limits")
    source: SourceRecord = Field(description="what it was made from")
    model: ModelRecord = Field(description="what a program has to know of the model")
    tokenizer: TokenizerRecord | None = Field(default=None, description="what its files were taken to mean")
    recipe: RecipeRecord = Field(description="the recipe with all its defaults")
    texts: TextsRecord = Field(description="the texts for calibration and check")
    published_text: bool = Field(description="whether the check text is part of the artifact")
    notes: list[str] = Field(default=[], description="what of the model or the default recipe is not as usual, and why")
    sizes: Sizes = Field(description="bytes of all weights, before and after")
    quantized: dict[str, QuantizedRole] = Field(description="role → how much there is, and is quantized")
    treatments: list[Treatment] = Field(description="what was done to modules, by role, scheme and method")
    fallbacks: dict[str, str] = Field(default={}, description="module → what was done instead, and why")
    budget: BudgetRecord | None = Field(default=None, description="how a budget was spent; absent: it had none")
    pruned: Pruned | None = Field(default=None, description="which experts were removed; absent: none")
    layers: list[LayerSummary] = Field(default=[], description="errors by layer")
    experts: list[ExpertsOfLayer] = Field(default=[], description="loads by layer of experts")
    targets: dict[str, TargetRecord] = Field(description="target → its files, without details")
    checks: Checks | None = Field(default=None, description="the comparison with the original that gates judge")
    torch_checks: Checks | None = Field(default=None, description="the same of the weights alone")
    worst: list[WorstInText] = Field(
        default=[], description="the tokens of the largest divergence; empty where the check text is not published"
    )
    speed: SpeedRecord | None = Field(
        default=None, description="on the machine where `llmc report --bench` was called; absent as builds leave it"
    )
    audit: AuditRecord | None = Field(
        default=None, description="what `llmc eval` found, where `llmc report --audit` was called; as in audit.json"
    )
    against: AgainstRecord | None = Field(
        default=None,
        description="what `llmc check --against` found, where `llmc report --against` was called; `layers` and "
        "`experts` are then its",
    )
    versions: dict[str, str] = Field(default={}, description="package → version that built it")
    stages: dict[str, str] = Field(default={}, description="stage → hash of everything that decides it")
    files: dict[FileName, File] = Field(description="files of the artifact but llmc.json, the card and the report")
    reference: File | None = Field(default=None, description="the check text, where it is not part of the artifact")

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Return the JSON Schema of report.json, as it is written."""
        schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | cls.model_json_schema(
            mode="serialization"
        )
        return schema | {"title": "llmc artifact report"}

    @property
    def measured(self) -> Checks | None:
        """The comparison that a reader is told first."""
        return self.checks or self.torch_checks

    @property
    def exact(self) -> Checks | None:
        """The comparison whose divergence is over the whole vocabulary, if there is one."""
        return next((each for each in (self.torch_checks, self.checks) if each and each.kl_kind == "exact"), None)
