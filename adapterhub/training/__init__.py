"""Fine-tuning: from a configuration and a dataset to a registered adapter.

`finetune` needs the `train` extra (trl, datasets): `pip install "adapterhub[train]"`.
"""
