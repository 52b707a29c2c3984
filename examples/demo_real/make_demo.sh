#!/bin/sh
# Makes the adapters of the demo on SmolLM2 from nothing: the data, three adapters in adapters/ beside this script, and their scores.
# An interrupted run goes on where it was. From the top of the repository, after `make demo-real`, in an environment with adapterhub[train].
set -eu
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

python -m examples.demo_real.data
for task in calculate extract intents; do
    adapterhub finetune "examples/demo_real/finetune/$task.yaml" --registry examples/demo_real/adapters --resume
done
python -m examples.demo_real.routing --registry examples/demo_real/adapters
python -m examples.demo_real.score --registry examples/demo_real/adapters --n 200 --write-cards
