"""llmc.json, the manifest of an artifact: everything that is known about it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from llmc.contracts.fidelity import AsBuiltRecord, BuiltRecord, HistogramRecord, RuntimeRecord, WindowsRecord
from llmc.contracts.images import ImagesRecord
from llmc.contracts.layer_errors import LayerErrors
from llmc.contracts.part import AxisSize, Count, File, FileName, LimitRecord, Nothing, Number, Part, Positive

# Keys as they were written before the American spelling; older artifacts stay readable.
_FORMER_KEYS = {"quantised": "quantized", "quantise": "quantize"}


def _renamed(value: Any) -> Any:
    if not isinstance(value, dict) or not _FORMER_KEYS.keys() & value.keys():
        return value
    return {_FORMER_KEYS.get(key, key): each for key, each in value.items()}


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Token = Annotated[tuple[int, str | None], BeforeValidator(_as_tuple)]  # id and text


class SourceRecord(Part):
    """The checkpoint that the artifact was made from."""

    id: str = Field(description="id on the hub, `builtin:` name or name of the folder")
    revision: str | None = Field(description="commit on the hub; null for a folder")
    license: str | None = Field(description="as the source's README.md says; null if it says nothing")
    license_name: str | None = Field(default=None, description="the name of one that the hub does not know, if it says")
    license_link: str | None = Field(default=None, description="where that is to be read, if it says")
    files: dict[str, str] = Field(default={}, description="name of every input file → its SHA-256")


class TextRead(Part):
    """What was read of one source of text."""

    text: str = Field(description="the text, as the recipe names it; of an absolute path the last part")
    available: Count | None = Field(default=None, description="documents that it has; null: not counted")
    documents: Count = Field(description="documents that were taken, whole or in part")
    tokens: Count = Field(description="tokens that were taken")
    cut: Count = Field(default=0, description="chats that lost their ends, since no window had room for them")
    dropped: Number = Field(default=0.0, description="share of the tokens of all chats taken that these ends are")
    windows: Count | None = Field(
        default=None,
        description="windows of the check text that hold this source alone, one source after the other; absent: of the "
        "calibration text, whose windows may hold several",
    )


class TextsRecord(Part):
    """The texts that calibration and check were done on."""

    note: str = Field(default="", description="where they come from, in words")
    sha256: list[str] = Field(
        default=[], description="SHA-256 of the tokens for calibration, and of those for the check"
    )
    read: dict[str, list[TextRead]] = Field(
        default={}, description="`calibration` and `check` → what was read of each source"
    )


class ModelRecord(Part):
    """What a program has to know of the model."""

    family: str = Field(description="`model_type` of config.json")
    num_layers: Count = Field(description="decoder layers")
    num_mtp_layers: Count = Field(description="layers for multi-token prediction, which follow them")
    vocab_size: AxisSize = Field(description="width of the logits")
    max_position_embeddings: AxisSize = Field(description="tokens of context that the model was made for")
    original_context: AxisSize | None = Field(
        default=None,
        description="tokens of the longest text that LongRoPE's short frequencies rotate; null: all are rotated alike",
    )
    bos_token_id: Count | None = Field(default=None, description="the beginning-of-text token; null: none")
    eos_token_ids: list[Count] = Field(description="tokens that end an answer")
    images: ImagesRecord | None = Field(default=None, description="how it is shown images; null: it takes text alone")


class TokenizerRecord(Part):
    """What the build made of the tokenizer's files; a token is [id, text]."""

    add_bos: bool | None = Field(default=None, description="whether texts begin with the beginning-of-text token")
    because: str = Field(default="", description="what that was decided by")
    begins_with: list[Token] = Field(default=[], description="tokens in front of every text")
    ends_with: list[Token] = Field(default=[], description="tokens that end an answer")
    made_from: str | None = Field(
        default=None, description="the source's file that tokenizer.json was made from, where it had none"
    )


class RuleRecord(Part):
    """One rule of `quantize`."""

    match: str = Field(description="a role, or `re:` and a pattern of module names")
    scheme: str = Field(description="name of the scheme")
    method: str = Field(description="gptq, gptaq, yaqa or rtn")


class CheckRecord(Part):
    """`check` of the recipe."""

    model_config = ConfigDict(extra="allow")

    text: str | list[dict[str, Any]] = Field(default="", description="the text, or where it was; or several")
    publish_text: bool = Field(default=True, description="whether reference.safetensors is part of the artifact")
    tokens: Count = Field(default=0, description="how many tokens were asked for")
    length: Count | None = Field(default=None, description="tokens per window")
    gates: dict[str, Number | LimitRecord] | None = Field(default=None, description="limit by name of the gate")
    default_gates: bool = Field(default=True, description="whether gates that the recipe does not name hold, too")


class RecipeRecord(Part):
    """The recipe with all its defaults. Absolute paths are cut to their last part."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(default="", description="name of the recipe")
    model: str = Field(default="", description="the model as the recipe names it")
    add_bos: bool | None = Field(default=None, description="the recipe's own decision, if it has one")
    calibration: dict[str, Any] = Field(default={}, description="text, samples, length, seed, experts")
    prune: dict[str, Any] | None = Field(default=None, description="method and keep; absent: no pruning")
    quantize: list[RuleRecord] = Field(
        default=[], description="the rules, the defaults included; the first that matches counts"
    )
    kv_cache: str = Field(default="bf16", description="bf16 or fp8")
    layout: str = Field(default="compressed-tensors", description="layout of the safetensors")
    targets: list[dict[str, dict[str, Any] | None]] = Field(default=[], description="each target with its options")
    check: CheckRecord | None = Field(default=None, description="what the artifact was compared on, and its gates")


class QuantizedRole(Part):
    """One role of tensors: all of it, and how much of it was quantized."""

    parameters: Count = Field(default=0, description="parameters in the artifact")
    bytes: Count = Field(default=0, description="their size there")
    expected: Count = Field(default=0, description="parameters that the rules cover")
    quantized: Count = Field(description="parameters that are quantized; a build fails if it is not `expected`")
    schemes: list[str] = Field(description="schemes that occur, sorted")

    _former_keys = model_validator(mode="before")(staticmethod(_renamed))


class TensorRecord(Part):
    """What was done to one module."""

    role: str = Field(description="role of its weight")
    scheme: str = Field(description="name of the scheme")
    method: str = Field(description="gptq, gptaq, yaqa, rtn, or `kept as stored`")
    error: Number | None = Field(
        default=None,
        description="relative squared error: of its outputs on the calibration text (gptq, gptaq; yaqa: weighted by "
        "how they matter), or its weights",
    )
    nearest_error: Number | None = Field(
        default=None, description="what the error of its outputs would be if every weight were rounded to nearest"
    )
    tokens: Count | None = Field(default=None, description="calibration tokens that an expert saw")
    fallback: str | None = Field(
        default=None, description="what was done instead, where tokens, the Hessian or the solver did not suffice"
    )


class Pruned(Part):
    """Which experts were removed. Layers are numbered from 0, as strings; experts as in the source."""

    method: str = Field(description="criterion: reap, ean or frequency")
    experts_before: Count = Field(description="experts per layer of the source")
    experts_after: Count = Field(description="experts per layer of the artifact")
    survivors: dict[str, list[Count]] = Field(
        default={}, description="layer → experts that stayed, by their numbers before"
    )
    calibration_tokens: dict[str, list[Count]] = Field(
        default={}, description="layer → tokens routed to each expert before"
    )
    super_experts: dict[str, list[Count]] = Field(
        default={},
        description="layer → experts that stayed whatever the criterion says, since their outputs are far the largest",
    )


class Sizes(Part):
    """Bytes of all weights."""

    original: Positive = Field(description="of the source")
    artifact: Count = Field(description="of the artifact's safetensors")


class TargetRecord(Part):
    """What was made for one target, or why nothing was."""

    name: str = Field(default="", description="name of the target")
    skipped: str | None = Field(default=None, description="why it was left out; absent if it was made")
    files: dict[str, str] = Field(description="role (main, mtp, data, or the file's own name) → file")
    weight_bytes: Count = Field(default=0, description="bytes of the weights that it uses, wherever they lie")
    file_bytes: Count = Field(default=0, description="bytes of its own files")
    notes: list[str] = Field(default=[], description="what whoever runs it should know")
    details: dict[str, Any] = Field(
        default={}, description="for the curious: operators of its graphs, programs of its engines"
    )


class GateRecord(Part):
    """A limit held against what was measured: the recipe's, or one that holds for every model."""

    name: str = Field(
        description="ppl_increase, kl_mean or top1; runtime_kl, graph, mtp_graph, tokenizer, chat_template or "
        "mtp_acceptance"
    )
    limit: Number = Field(description="the limit; of tokenizer and chat_template 1, the same")
    value: Number = Field(description="what was measured")
    passed: bool = Field(description="whether the value, or the end of its interval, keeps the limit")
    confidence: Count | None = Field(default=None, description="percent, if the end of the interval is judged")
    end: Number | None = Field(default=None, description="that end: the upper one, of top1 the lower")
    by_default: bool = Field(default=False, description="whether it holds without the recipe's saying so")


class StretchRecord(Part):
    """The divergence at some positions of all windows; position 1 is that behind the first token."""

    first: Count = Field(description="first position")
    last: Count = Field(description="last position")
    kl_mean: Number = Field(description="mean divergence there, in nats per token")
    kl_mean_stderr: Number = Field(description="its standard error")


class KindRecord(Part):
    """The divergence where a token of some kind follows."""

    kind: str = Field(description="word start, word part, digits, punctuation, space or other")
    tokens: Count = Field(description="how many positions these are")
    kl_mean: Number = Field(description="mean divergence there, in nats per token")


class SourceOfTextRecord(Part):
    """The divergence over the windows of one source of the check text. Standard errors are over windows."""

    text: str = Field(description="the source, as the recipe names it")
    windows: Count = Field(description="how many windows these are")
    kl_mean: Number = Field(description="mean divergence there, in nats per token")
    kl_mean_stderr: Number = Field(description="its standard error")
    ppl_original: Number = Field(description="perplexity of the original there")
    ppl: Number = Field(description="perplexity of the artifact there")
    ppl_increase_stderr: Number = Field(description="standard error of ppl / ppl_original - 1 (paired)")


class WorstRecord(Part):
    """A token of the check text that suffered most."""

    window: Count = Field(description="number of the window, from 0")
    position: Count = Field(description="how many tokens of the window stand in front")
    kl: Number = Field(description="divergence there, in nats")
    p_original: Number = Field(description="probability of the token that follows, by the original")
    p: Number = Field(description="by the artifact")


class WorstWindowRecord(Part):
    """A window of the check text that suffered most."""

    window: Count = Field(description="its number, from 0")
    kl_mean: Number = Field(description="mean divergence there, in nats per token")


class Checks(Part):
    """A comparison with the original on the check text. Standard errors are over windows."""

    computed_by: str | None = Field(
        default=None, description="torch: by the pass over the layers, before any target; absent: by ONNX Runtime"
    )
    tokens: Count = Field(description="predictions that were compared")
    ppl_original: Annotated[Number, Field(gt=0)] = Field(description="perplexity of the original")
    ppl_original_stderr: Number = Field(description="its standard error")
    ppl: Number = Field(description="perplexity of the artifact")
    ppl_stderr: Number = Field(description="its standard error")
    ppl_increase_stderr: Number | None = Field(
        default=None, description="standard error of ppl / ppl_original - 1, from the same windows (paired)"
    )
    kl_kind: Literal["exact", "sampled", "lower bound"] = Field(
        default="lower bound",
        description="exact: over the whole vocabulary, in float64; sampled: an estimate of that without bias, of "
        "likely tokens and a sample of the others; lower bound: of likely tokens and one bucket for the others, by a "
        "reference.safetensors that lacks such a sample",
    )
    kl_mean: Number = Field(description="Kullback–Leibler divergence from the original, mean, in nats per token")
    kl_mean_stderr: Number | None = Field(default=None, description="standard error of kl_mean, over windows")
    kl_sampled: Number | None = Field(
        default=None, description="beside an exact kl_mean: what the sample in reference.safetensors makes of it"
    )
    kl_sampling_stderr: Number | None = Field(
        default=None,
        description="standard error that sampling the vocabulary adds: of kl_sampled, otherwise of kl_mean, where it "
        "is part of kl_mean_stderr",
    )
    kl_median: Number = Field(description="its median")
    kl_p99: Number = Field(description="its 99th percentile")
    kl_p999: Number | None = Field(default=None, description="its 99.9th percentile")
    kl_max: Number = Field(description="its maximum")
    kl_above_0_1: Number | None = Field(default=None, description="share of tokens where it is more than 0.1 nats")
    kl_above_0_1_stderr: Number | None = Field(default=None, description="standard error of kl_above_0_1")
    kl_above_1: Number | None = Field(default=None, description="share of tokens where it is more than 1 nat")
    kl_above_1_stderr: Number | None = Field(default=None, description="standard error of kl_above_1")
    top1: Number = Field(description="share of positions at which both find the same token most likely")
    top1_stderr: Number | None = Field(default=None, description="standard error of top1")
    p_change: Number | None = Field(default=None, description="mean change of the true token's probability")
    p_change_stderr: Number | None = Field(default=None, description="standard error of p_change")
    p_change_rms: Number | None = Field(default=None, description="root of the mean square of that change")
    p_change_rms_stderr: Number | None = Field(default=None, description="standard error of p_change_rms")
    kl_by_position: list[StretchRecord] = Field(default=[], description="the divergence along the windows")
    kl_by_kind: list[KindRecord] = Field(default=[], description="the divergence by the token that follows")
    kl_by_source: list[SourceOfTextRecord] = Field(
        default=[], description="the divergence by source of the check text, where there are several"
    )
    worst: list[WorstRecord] = Field(default=[], description="the ten tokens of the largest divergence")
    worst_windows: list[WorstWindowRecord] = Field(default=[], description="the ten windows of the largest mean")
    kl_histogram: HistogramRecord | None = Field(default=None, description="how many tokens diverge by how much")
    by_window: WindowsRecord | None = Field(default=None, description="means over each window")
    runtime: RuntimeRecord | None = Field(
        default=None, description="how much of that is the runtime's own; absent: the reference does not tell"
    )
    as_built: AsBuiltRecord | None = Field(
        default=None, description="whether it does what it did when it was built; absent: nothing is on record"
    )
    ends: dict[str, dict[str, Number]] = Field(
        default={},
        description="gate → confidence in percent → end of the one-sided interval: the upper one, of top1 the lower",
    )
    gates: list[GateRecord] = Field(description="the recipe's gates, and those that hold for every model")
    mtp_acceptance: Number | None = Field(default=None, description="share of MTP drafts that greedy decoding accepts")

    @property
    def missed(self) -> list[GateRecord]:
        """The gates that the artifact does not pass."""
        return [gate for gate in self.gates if not gate.passed]


class CheckedGraphs(Part):
    """What is found where the graphs of target onnxruntime run for the first time."""

    checks: Checks
    built: BuiltRecord


class BudgetPoint(Part):
    """One size that the model could have had."""

    bytes: Count = Field(description="of the safetensors")
    bits: Number = Field(description="mean bits per parameter, scales included, of what may be quantized")
    kl: Number = Field(description="predicted KL divergence, in nats per token")


class BudgetRecord(Part):
    """A recipe's budget, and how it was spent; the recipe's rules say which module got what."""

    asked: str = Field(description="size, bits or fit, as the recipe says it")
    bytes: Count = Field(description="of the safetensors, as they were foreseen")
    bits: Number = Field(description="mean bits per parameter, scales included, of what may be quantized")
    predicted_kl: Number = Field(
        description="what the measured sensitivities predict, in nats per token, MTP layers left out"
    )
    tokens: Count = Field(description="of the calibration text that sensitivities were measured on")
    roles: dict[str, dict[str, Count]] = Field(description="role → scheme, or as-is → parameters")
    role_bits: dict[str, Number] = Field(description="role → mean bits of these parameters")
    curve: list[BudgetPoint] = Field(description="what other sizes would have cost, the smallest first")


class SpentBudget(Part):
    """How a budget is spent, and the rules that say so."""

    record: BudgetRecord
    rules: list[RuleRecord]


class QuantizedModel(Part):
    """What is written of a quantized model, whatever is made of it afterwards."""

    quantized: dict[str, QuantizedRole]
    tensors: dict[str, TensorRecord]
    pruned: Pruned | Nothing
    layer_errors: list[float]
    layers: list[LayerErrors] = Field(default=[])
    torch_checks: Checks | Nothing
    texts: TextsRecord = TextsRecord()


class Manifest(Part):
    """What was done to the model, what was measured, and which files belong to the artifact."""

    format_version: Annotated[int, Field(ge=1)] = Field(description="1; a program refuses what is newer than it knows")
    llmc_version: str = Field(default="", description="version of llmc that built it")
    key: str = Field(default="", description="hash of everything that decides the build")
    stages: dict[str, str] = Field(default={}, description="stage → hash of everything that decides it")
    name: str = Field(default="", description="name of the recipe")
    recipe: RecipeRecord = Field(description="the recipe with all its defaults")
    source: SourceRecord = Field(description="what it was made from")
    texts: TextsRecord = Field(default=TextsRecord(), description="the texts for calibration and check")
    model: ModelRecord = Field(description="what a program has to know of the model")
    tokenizer: TokenizerRecord | None = Field(default=None, description="what its files were taken to mean")
    budget: BudgetRecord | None = Field(default=None, description="how its budget was spent; absent: it had none")
    quantized: dict[str, QuantizedRole] = Field(description="role → how much there is, and is quantized")
    tensors: dict[str, TensorRecord] = Field(
        default={}, description="module → what was done to it; others are as in the source"
    )
    pruned: Pruned | Nothing = Field(description="which experts were removed; `{}`: none")
    layer_errors: list[float] = Field(
        default=[],
        description="relative distance of the activations from the original's on the check text, after each layer",
    )
    layers: list[LayerErrors] = Field(
        default=[], description="the same with angles, and with what its routers choose beside the original's"
    )
    sizes: Sizes = Field(description="bytes of all weights, before and after")
    targets: dict[str, TargetRecord] = Field(description="target → its files")
    checks: Checks | Nothing = Field(description="the comparison with the original; `{}`: there was none")
    torch_checks: Checks | Nothing = Field(
        default=Nothing(),
        description="the same by the pass over the layers, without gates: what the weights alone cost",
    )
    built: BuiltRecord = Field(default=BuiltRecord(), description="what it did when it was built")
    notes: list[str] = Field(default=[], description="what of the model or the default recipe is not as usual, and why")
    versions: dict[str, str] = Field(default={}, description="package → version that built it")
    files: dict[FileName, File] = Field(description="every file of the artifact but llmc.json; no other is used")
    reference: File | None = Field(
        default=None, description="reference.safetensors, where it is not part of the artifact"
    )
    digest: str | None = Field(
        default=None, description="SHA-256 of the manifest without this key, as JSON with sorted keys"
    )

    _former_keys = model_validator(mode="before")(staticmethod(_renamed))

    @model_validator(mode="before")
    @classmethod
    def _former_stages(cls, value: Any) -> Any:
        return value | {"stages": _renamed(value["stages"])} if isinstance(value, dict) and "stages" in value else value

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Return the JSON Schema of llmc.json, as it is written."""
        schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | cls.model_json_schema(
            mode="serialization"
        )
        return schema | {"title": "llmc artifact manifest"}

    @property
    def spent(self) -> SpentBudget | None:
        """How its budget was spent; None: it had none."""
        return SpentBudget(record=self.budget, rules=self.recipe.quantize) if self.budget else None

    @property
    def result(self) -> QuantizedModel:
        """What its pass over the model reported."""
        return QuantizedModel(
            quantized=self.quantized,
            tensors=self.tensors,
            pruned=self.pruned,
            layer_errors=self.layer_errors,
            layers=self.layers,
            torch_checks=self.torch_checks,
            texts=self.texts,
        )
