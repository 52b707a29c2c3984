"""A fleet of replicas, simulated: how many of them, slots and gigabytes, and what adapter affinity saves.

A discrete-event simulation with measured service times. A replica is a batching engine as vLLM's and ours are: steps
that prefill prompts and decode one token for each running request, LoRA slots, adapters in host memory, a bounded
queue. `adapterhub.fleet.by_affinity` itself chooses a request's replica, and other policies do to compare it with. One
seed gives one result. docs/scaling.md says what the model leaves out.

    python -m benchmarks.fleet_simulation compare --replicas 3 --adapters 200 --rate 60
    python -m benchmarks.fleet_simulation plan --adapters 1000 --rate 50 --first-token 0.5
    python -m benchmarks.fleet_simulation.measuring --demo --write demo
    python -m benchmarks.fleet_simulation.validating
    python -m benchmarks.fleet_simulation.charts docs/images
"""
