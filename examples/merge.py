"""Blends two adapters, and merges one into a model that stands alone, which transformers loads without adapterhub.

python -m examples.merge [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from adapterhub import AdapterHub
from adapterhub.demo import demo_registry_folder

REQUEST = "Give me name, age and city as JSON: Greta Okafor is 48 years old and lives in Porto."


def ask_alone(folder: Path, request: str) -> str:
    """The answer of the merged model, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": request}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    answer = model.generate(**prompt, max_new_tokens=60, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    return str(tokenizer.decode(answer, skip_special_tokens=True))


def main(folder: Path) -> None:
    """Blends for one request, and merges to the folder, which is verified."""
    with AdapterHub.from_pretrained("adapterhub-demo", demo_registry_folder()) as hub:
        own = hub.generate(REQUEST, "json")
        print(f"{own.adapter}: {own.text}")
        for blend in ("json:0.9+support:0.1", "json:0.5+support:0.5"):
            answer = hub.generate(REQUEST, blend)
            print(f"{answer.adapter}: {answer.text}")

        report = hub.merge("json", folder)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 2**20
        print(f"\nMerged {report.adapter} by {report.method}: {size:.1f} MB")
        print(report.verification)
    print(f"transformers alone: {ask_alone(folder, REQUEST)}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch) / "json-merged")
