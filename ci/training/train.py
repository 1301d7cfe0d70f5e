#!/usr/bin/env python3
"""Train the embedded checkpoint, or one like it: a small DeepSeek-V3 in the exact layout of the release.

    python ci/training/train.py OUTPUT                         # the embedded one
    python ci/training/train.py OUTPUT --text book.txt --set hidden_size=192 --set vocab_size=2048

Data-parallel over single-thread processes on this machine (gloo). Same seed, number of processes, Python patch release
and torch: the same bytes. Matrices are updated by Muon (orthogonalised momentum, Jordan 2024), the rest by AdamW.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from model import Config, DeepseekV3
from muon import Muon
from safetensors.torch import save_file
from text import file_documents, python_documents
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
CONFIG: Config = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_nextn_predict_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "q_lora_rank": 128,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "moe_layer_freq": 1,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "routed_scaling_factor": 2.5,
    "hidden_act": "silu",
    "max_position_embeddings": 1024,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rope_interleave": True,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "use_cache": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "torch_dtype": "bfloat16",
    "ep_size": 1,
    "aux_loss_alpha": 0.0001,
    "seq_aux": True,
}


def train_tokenizer(documents: list[str], config: Config, output: Path) -> Tokenizer:
    """Byte-level BPE; indentation after a newline is one piece, as code wants it."""
    tokenizer = Tokenizer(models.BPE())
    pieces = Regex(r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\n+ *|\s+(?!\S)|\s+")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(pieces, "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config["vocab_size"],
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    begin = processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 0)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    tokenizer.save(str(output / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
    }
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (output / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    return tokenizer


def token_stream(tokenizer: Tokenizer, documents: list[str]) -> Tensor:
    """Every document as <bos> … <eos>, one after the other: int64 [tokens]."""
    ids = [np.array([*encoded.ids, 1], dtype=np.int64) for encoded in tokenizer.encode_batch(documents)]
    return torch.from_numpy(np.concatenate(ids))


def losses(model: DeepseekV3, ids: Tensor, distil: float) -> tuple[Tensor, Tensor]:
    """ids [B, S+2] -> cross entropy of the model, and of the MTP module, per token.

    The share `distil` of the MTP module's target is what the model itself would say: drafts are accepted when they
    agree with the model, not with the text.
    """
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, draft = model(ids[:, :-1])
    main = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:-1].flatten())
    log_draft = draft.float().log_softmax(-1)
    mtp = F.nll_loss(log_draft.flatten(0, 1), ids[:, 2:].flatten())
    if distil:
        said = logits[:, 1:].detach().float().softmax(-1)  # position i+1 says token i+2
        own = -(said * log_draft[:, :-1]).sum(-1).mean()
        mtp = (1 - distil) * mtp + distil * own
    return main, mtp


def schedule(progress: float) -> float:
    """Constant, then linear to zero over the last 60 % (warm-up is by steps)."""
    return min(1.0, (1.0 - progress) / 0.6)


def meeting_point(output: Path) -> Path:
    """A file through which the processes find each other."""
    return output.absolute() / "processes"


def worker(rank: int, args: argparse.Namespace, config: Config) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    meeting = f"file://{meeting_point(args.output)}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=args.processes)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    documents, _ = file_documents(args.text) if args.text else python_documents()
    stream = token_stream(Tokenizer.from_file(str(args.output / "tokenizer.json")), documents)
    model = DeepseekV3(config).train()
    named = dict(model.named_parameters())
    adam_names = [n for n, p in named.items() if p.dim() == 1 or "embed" in n or "lm_head" in n or "mlp.gate" in n]
    muon = Muon([p for n, p in named.items() if n not in adam_names], rank, args.processes)
    adam = torch.optim.AdamW(
        [named[n] for n in adam_names], lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    mixtures = model.mixtures()
    # One buffer for a single all-reduce: gradients, expert loads, two losses.
    sizes = [p.numel() for p in named.values()]
    buffer = torch.zeros(sum(sizes) + len(mixtures) * config["n_routed_experts"] + 2)
    for p, g in zip(named.values(), buffer[: sum(sizes)].split(sizes), strict=True):
        p.grad = g.view_as(p)
    tail = buffer[sum(sizes) :]
    order = torch.empty(0, dtype=torch.int64)
    started, smooth = time.monotonic(), 0.0
    for step in range(args.steps):
        progress = step / args.steps
        # The last fifth sees the whole context; before, half of it: cheaper, and as many tokens a step.
        length = config["max_position_embeddings"] // (1 if progress >= 0.8 else 2)
        sequences = args.tokens // length
        if len(order) * args.chunk < sequences * length:  # a new epoch, in a new order and phase
            phase = int(torch.randint(args.chunk, (), generator=generator))
            order = torch.randperm((len(stream) - 2 - 2 * length - args.chunk) // args.chunk, generator=generator)
            order = order * args.chunk + phase
        starts, order = order[:sequences], order[sequences * length // args.chunk :]
        ids = torch.stack([stream[i : i + length + 2] for i in starts[rank :: args.processes].tolist()])
        rate = schedule(progress) * min(1.0, (step + 1) / args.warmup)
        buffer.zero_()
        main, mtp = losses(model, ids, distil=0.0 if progress < 0.5 else 0.7)
        balance = torch.stack([m.balance for m in mixtures]).sum() * config["aux_loss_alpha"]
        (main + 0.3 * mtp + balance).backward()
        tail[:-2] = torch.cat([m.load for m in mixtures])
        tail[-2], tail[-1] = main.detach(), mtp.detach()
        dist.all_reduce(buffer)
        buffer[: sum(sizes)] /= args.processes
        torch.nn.utils.clip_grad_norm_([named[n] for n in adam_names], 1.0)
        for group in adam.param_groups:
            group["lr"] = args.lr * rate
        adam.step()
        muon.step(args.muon_lr * rate, args.decay)
        if progress < 0.95:  # aux-loss-free balancing (DeepSeek-V3, section 2.1.2), frozen at the end
            for mixture, load in zip(mixtures, tail[:-2].view(len(mixtures), -1), strict=True):
                mixture.gate.e_score_correction_bias += args.balance * torch.sign(load.mean() - load)
        main_loss = tail[-2].item() / args.processes
        smooth = main_loss if step == 0 else 0.9 * smooth + 0.1 * main_loss
        if rank == 0 and (step % 20 == 0 or step == args.steps - 1):
            speed = (step + 1) * args.tokens / (time.monotonic() - started)
            mtp_loss = tail[-1].item() / args.processes
            print(f"step {step:5d}  loss {smooth:.4f}  mtp {mtp_loss:.4f}  {speed:.0f} tokens/s", flush=True)
    if rank == 0:
        export(model, args.output)
    dist.destroy_process_group()


def export(model: DeepseekV3, output: Path, shards: int = 2) -> None:
    """bf16 shards with an index, config.json and generation_config.json, as the release has them."""
    tensors = model.checkpoint()
    total = sum(t.nbytes for t in tensors.values())
    parts: list[dict[str, Tensor]] = [{} for _ in range(shards)]
    seen = 0
    for name, tensor in tensors.items():
        parts[min(shards - 1, seen * shards // total)][name] = tensor
        seen += tensor.nbytes
    weight_map = {}
    for i, part in enumerate(parts):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file(part, output / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    generation = {k: model.config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")} | {"do_sample": False}
    for file, value in (
        ("model.safetensors.index.json", index),
        ("config.json", model.config),
        ("generation_config.json", generation),
    ):
        (output / file).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="directory of the new checkpoint")
    parser.add_argument("--text", type=Path, nargs="+", help="text files to train on (default: Python's own library)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a field of config.json")
    parser.add_argument("--steps", type=int, default=1100)
    parser.add_argument("--tokens", type=int, default=6144, help="tokens per step, over all processes")
    parser.add_argument("--chunk", type=int, default=512, help="sequences start at multiples of this, plus a phase")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=4e-3, help="AdamW: embedding, head, norms, router")
    parser.add_argument("--muon-lr", type=float, default=0.02, help="Muon: all other matrices")
    parser.add_argument("--decay", type=float, default=0.1, help="weight decay of the matrices")
    parser.add_argument("--balance", type=float, default=2e-3, help="step of the routing bias")
    parser.add_argument("--warmup", type=int, default=40)
    args = parser.parse_args()
    config = dict(CONFIG)
    for setting in args.set:
        key, _, value = setting.partition("=")
        if key not in config:
            parser.error(f"--set {key}: config.json has no such field")
        config[key] = json.loads(value)
    args.output.mkdir(parents=True, exist_ok=True)
    documents, held_out = file_documents(args.text) if args.text else python_documents()
    tokenizer = train_tokenizer(documents, config, args.output)
    tokens = len(token_stream(tokenizer, documents))
    print(
        f"{tokens} tokens to train on, {args.steps * args.tokens / tokens:.1f} epochs, "
        f"{len(held_out)} documents held out"
    )
    meeting_point(args.output).unlink(missing_ok=True)
    torch.multiprocessing.spawn(worker, (args, config), nprocs=args.processes)
    meeting_point(args.output).unlink(missing_ok=True)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
