#!/bin/sh
# Makes the shipped demo from nothing: the base, the data, four adapters in adapters/, and their scores.
# From the top of the repository, in an environment with adapterhub[train]: sh examples/demo/make_demo.sh
set -eu
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

mkdir -p build/demo
python -m examples.demo.base --out adapterhub/demo/base --checkpoint build/demo/base.ckpt "$@"
python -m examples.demo.data --out build/demo
for task in json code support tools; do
    adapterhub finetune "examples/demo/finetune/$task.yaml" --registry adapters
done
python -m examples.demo.routing --registry adapters
python -m examples.demo.score --n 200 --json build/demo/scores.json --write-cards
