"""This engine beside vLLM, llama.cpp, PEFT and transformers; see `benchmarks.versus.__main__`.

Each contender is a process of its own, since vLLM needs other versions of the same packages and the number of threads
is a matter of the process. `worker` and `vllm` therefore import nothing of this project.
"""
