"""The model in torch: small blocks assembled from a `ModelSpec`, one layer loadable at a time."""

from llmc.convert.model.cache import KeyValueCache, LatentCache, LayerCache, StateCache, layer_cache
from llmc.convert.model.causal_lm import (
    CausalLM,
    load_embedding,
    load_final_norm,
    load_layer,
    load_lm_head,
    load_stored_layer,
    logits,
    scaled_logits,
    share_layer,
)
from llmc.convert.model.decoder_layer import DecoderLayer
from llmc.convert.model.dense_mlp import DenseMLP
from llmc.convert.model.gated_delta_net import GatedDeltaNet
from llmc.convert.model.grouped_query_attention import GroupedQueryAttention
from llmc.convert.model.grouped_topk import GroupedTopK
from llmc.convert.model.latent_attention import LatentAttention
from llmc.convert.model.linear import Linear, compute_in
from llmc.convert.model.mamba2 import Mamba2
from llmc.convert.model.mixture_of_experts import MixtureOfExperts
from llmc.convert.model.multi_token_prediction import MultiTokenPrediction
from llmc.convert.model.rms_norm import RMSNorm

__all__ = [
    "CausalLM",
    "DecoderLayer",
    "DenseMLP",
    "GatedDeltaNet",
    "GroupedQueryAttention",
    "GroupedTopK",
    "KeyValueCache",
    "LatentAttention",
    "LatentCache",
    "LayerCache",
    "Linear",
    "Mamba2",
    "MixtureOfExperts",
    "MultiTokenPrediction",
    "RMSNorm",
    "StateCache",
    "compute_in",
    "layer_cache",
    "load_embedding",
    "load_final_norm",
    "load_layer",
    "load_lm_head",
    "load_stored_layer",
    "logits",
    "scaled_logits",
    "share_layer",
]
