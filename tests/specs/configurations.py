"""The configurations of the specifications, as they stand."""

import json
from pathlib import Path

SPECIFICATION_0 = json.loads(
    (Path(__file__).parents[2] / "examples" / "quest_5_2.json").read_text(encoding="utf-8")
)
SPECIFICATION_2 = """
base: TinyLlama/TinyLlama-1.1B-Chat-v1.0
data: {train: jokes.jsonl, validation: held-out.jsonl}
lora:
  r: 8
  lora_alpha: 16
  lora_dropout: 0.05
  bias: none
  task_type: CAUSAL_LM
  target_modules: [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]
training_args:
  output_dir: ./tinyllama-anekdots-lora
  per_device_train_batch_size: 2
  gradient_accumulation_steps: 4
  num_train_epochs: 2
  learning_rate: 1e-4
  warmup_ratio: 0.003
  logging_steps: 10
  logging_strategy: steps
  eval_strategy: epoch
  save_strategy: no
  eval_steps: 50
  bf16: True
  optim: paged_adamw_8bit
  fp16: False
  report_to: [none]
  run_name: tinyllama-anekdots
"""
"""Specification 2's LoRA settings (D1) and training arguments (D2); YAML reads `1e-4` as text and `no` as false."""
