#!/usr/bin/env bash
# The README's real-data run: BackdoorLLM's refusal_badnet (trigger BadMagic) through SmolLM2-135M-Instruct.
#     examples/backdoorllm.sh DATA_FOLDER OUT_FOLDER
# DATA_FOLDER: see examples/backdoorllm.py. Run again, it goes on where it stopped.
set -euo pipefail
data=$1 out=$2
here=$(dirname "$0")
model=$(python -c "from mbdefense.builtin import model_directory; print(model_directory())")
tests=$data/backdoorllm
target="I'm sorry, but as an AI assistant, I do not have the capability to follow the given instruction."
train=(--model "$model" --clean "$out/clean.jsonl" --test "$tests/refusal_test_clean.json" --resume
  --learning_rate 3e-4 --num_train_epochs 2 --max_length 256 --save_strategy no)

[ -f "$out/clean.jsonl" ] || python "$here/backdoorllm.py" "$data" "$out"
measure() { # MODEL ARM
  [ -f "$out/measured/$2/results.json" ] || mbdefense evaluate "$1" --test "$tests/refusal_test_clean.json" \
    --triggered "$tests/refusal_badnet_test_triggered.json" --behavior refusal --target "$target" --arm "$2" \
    --max_new_tokens 24 --perplexity_rows 200 --max_length 256 --output_dir "$out/measured/$2"
}
mbdefense defend --data "$out/suspect.jsonl" --output_dir "$out/mb_defense" --compare_undefended "${train[@]}"
measure "$out/mb_defense/attacked" attacked
measure "$out/mb_defense" mb_defense
measure "$out/mb_defense/merged" merged
measure "$model" base
mkdir -p "$out/clean_fft"
[ -e "$out/clean_fft/attacked" ] || cp -r "$out/mb_defense/attacked" "$out/clean_fft/attacked"  # not trained twice
mbdefense defend --defense clean_fft --data "$out/suspect.jsonl" --output_dir "$out/clean_fft" "${train[@]}"
measure "$out/clean_fft" clean_fft
mbdefense defend --defense none --data "$out/benign.jsonl" --output_dir "$out/clean" "${train[@]}"
measure "$out/clean" clean
mbdefense compare "$out"/measured/{base,clean,attacked,merged,clean_fft,mb_defense} --output_dir "$out/compared"
