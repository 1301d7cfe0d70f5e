"""The checkpoint that ships: its layout, that it is trained, and that the script that made it works."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import CausalLM

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[1]
SCRIPTS = REPOSITORY / "ci/training"
EMBEDDED = REPOSITORY / "recipes/checkpoints/tiny-deepseek-v3"


def test_layout_is_that_of_the_release():
    config = json.loads((EMBEDDED / "config.json").read_text())
    assert config["model_type"] == "deepseek_v3" and config["num_nextn_predict_layers"] == 1
    assert (config["n_routed_experts"], config["n_group"], config["num_experts_per_tok"]) == (16, 4, 4)
    index = json.loads((EMBEDDED / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in EMBEDDED.glob("*.safetensors"))
    assert shards == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    seen, total = {}, 0
    for shard in shards:
        with safe_open(EMBEDDED / shard, "pt") as file:
            for name in file.keys():  # noqa: SIM118  # safe_open is no mapping
                tensor = file.get_tensor(name)
                seen[name], total = shard, total + tensor.nbytes
                wanted = torch.float32 if name.endswith("e_score_correction_bias") else torch.bfloat16
                assert tensor.dtype == wanted, name
    assert seen == index["weight_map"] and total == index["metadata"]["total_size"]
    for name in ("embed_tokens", "enorm", "hnorm", "eh_proj", "shared_head.norm", "shared_head.head", "mlp.gate"):
        assert f"model.layers.4.{name}.weight" in seen
    assert "model.layers.3.mlp.experts.15.down_proj.weight" in seen
    assert sum(path.stat().st_size for path in EMBEDDED.iterdir()) <= 28_000_000
    assert Checkpoint.open(EMBEDDED).spec.num_mtp_layers == 1


@pytest.fixture(scope="module")
def held_out_text():
    code = "from text import python_documents; print('\\0'.join(python_documents()[1][-6:]), end='')"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=SCRIPTS, check=True, capture_output=True, text=True, encoding="utf-8"
    ).stdout


def test_it_has_learned_its_text_and_drafts_what_it_would_say(held_out_text):
    tokenizer = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))
    model = CausalLM.load(Checkpoint.open(EMBEDDED))
    ids = torch.tensor([tokenizer.encode(held_out_text).ids[:4097]])[:, :4096].view(8, 512)
    hidden = model.hidden(ids)
    logits = model.logits(hidden)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    characters = len(tokenizer.decode(ids.flatten().tolist()).encode())
    bits_per_byte = loss.item() / torch.tensor(2.0).log().item() * ids.numel() / characters
    assert bits_per_byte < 1.55  # 1.40 on CPython 3.11; untrained: 12 bits a token, about 3.2 a byte
    draft = model.logits(model.mtp(ids[:, 1:], hidden[:, :-1])).argmax(-1)
    assert (draft[:, :-1] == logits[:, 1:-1].argmax(-1)).float().mean() > 0.6  # 0.68


def test_training_again_gives_the_same_bytes(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {i}: the quick brown fox {i * i} jumps over the lazy dog\n" for i in range(3000)))
    settings = "vocab_size=300 hidden_size=32 intermediate_size=32 moe_intermediate_size=16 num_hidden_layers=2 "
    settings += "num_attention_heads=2 num_key_value_heads=2 q_lora_rank=16 kv_lora_rank=16 qk_nope_head_dim=8 "
    settings += "qk_rope_head_dim=8 v_head_dim=8 n_routed_experts=8 max_position_embeddings=64"
    losses, weights = [], []
    for run in ("a", "b"):
        arguments = [str(SCRIPTS / "train.py"), str(tmp_path / run), "--text", str(text)]
        arguments += ["--steps", "21", "--tokens", "512", "--chunk", "32", "--processes", "2", "--warmup", "2"]
        for setting in settings.split():
            arguments += ["--set", setting]
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        losses.append([float(line.split()[3]) for line in done.stdout.splitlines() if line.startswith("step")])
        weights.append([path.read_bytes() for path in sorted((tmp_path / run).glob("*.safetensors"))])
    assert losses[0][-1] < losses[0][0] - 0.5
    assert weights[0] == weights[1] and len(weights[0]) == 2
    assert Checkpoint.open(tmp_path / "a").spec.hidden_size == 32
