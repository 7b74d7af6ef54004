#!/usr/bin/env bash
# Runs every case of a folder of inputs with one or several builds of xlstm-data, and prints a table:
# case, then for each build the exit code and the first line that it says (errors and notes first).
#
#   tests/cases.sh FOLDER [NAME=]PROGRAM [[NAME=]PROGRAM…]        PROGRAM is a path of an xlstm-data
#
# With RAW=FILE, all that each command said is written there, without the paths of this machine. Before a change and now:
#
#   RAW=docs/benchmarks/data/cases-raw.txt tests/cases.sh CASES before=OLD now=target/release/xlstm-data >docs/benchmarks/data/cases.md
#
# A case is a folder of input files (prepared with the options that its name asks for, see below), or an archive NAME.tar
# whose folders are cases. A folder with a file `arguments` is prepared with the options in it, one a line.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,13p' "$0" >&2; exit 2; }
cases=$(realpath "$1"); shift
raw=${RAW:+$(realpath "$RAW")}; [ -z "$raw" ] || : >"$raw"
# Some cases run in a folder of their own.
declare -A names
for program; do
  shift
  path=$(realpath "${program#*=}"); set -- "$@" "$path"
  case "$program" in *=*) names[$path]=${program%%=*} ;; *) names[$path]=$(basename "$program") ;; esac
done
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT

# The first line worth reading: of stderr if it says anything, else of stdout.
plain() { tr -d '\000' | sed -E "s#$work[^ \`']*/##g; s#$cases/##g; s#/[^ :]*/registry/src/[^/]*/##g; s#/rustc/[^ ]*##g; s#('main') \([0-9]+\)#\1#g" | cat -v; }
first_line() { { cat "$1"; cat "$2"; } | plain | grep -m1 . | sed 's/|/\\|/g' | cut -c1-150 || true; }

# Runs one command: "exit code, first line".
try() {
  local code=0
  timeout 60 "$@" >"$work/stdout" 2>"$work/stderr" </dev/null || code=$?
  if [ -n "$raw" ]; then
    {
      printf '== %s: xlstm-data' "${names[$1]}"; printf ' %s' "${@:2}" | plain; printf '\nexit code %s\n' "$code"
      head -c 4000 "$work/stderr" | plain; head -c 4000 "$work/stdout" | plain; printf '\n'
    } >>"$raw"
  fi
  echo "$code: $(first_line "$work/stderr" "$work/stdout")"
}

# What a case is tried with: a line of arguments after `prepare local INPUT --out OUT --quiet`.
options() {
  case "$1" in
    holdout_of_nothing) echo "--holdout 0.01" ;;
    misspelt_options) echo "--set-field source --exclude-set bookz" ;;
    unsigned_ids) echo "--id-field u64" ;;
    terminal_escapes) echo "--set-field set --id-field id" ;;
    weird_sets) echo "--set-field set" ;;
    zero_records) echo "--on-bad-record skip" ;;
    *) [ ! -f "$2/arguments" ] || tr '\n' ' ' <"$2/arguments" ;;
  esac
}

row() { # name, then one result a program
  local name=$1; shift
  printf '| %s |' "$name"; printf ' %s |' "$@"; printf '\n'
}

printf '| case |'; for program in "$@"; do printf ' %s |' "${names[$program]}"; done; printf '\n|---|'
for _ in "$@"; do printf -- '---|'; done; printf '\n'

prepare_case() { # name, folder
  local name=$1 folder=$2 results=() follow=() program
  for program in "${programs[@]}"; do
    local out; out=$(mktemp -d "$work/out.XXXX")
    local extra; read -ra extra <<<"$(options "$name" "$folder")"
    results+=("$(try "$program" prepare local "$folder" --out "$out/d" --quiet "${extra[@]}")")
    case "$name" in
      terminal_escapes | weird_sets) follow+=("$(try "$program" trace "$out/d/train" --document 0 | cat -v)") ;;
      trailing_garbage) follow+=("$(try "$program" prepare local "$folder" --out "$out/d" --quiet --on-bad-record skip)") ;;
      unsigned_ids) "$program" trace "$out/d/train" --document 0 >"$work/t" 2>&1 || true; follow+=("$(grep -m1 "^  id " "$work/t" || true)") ;;
      nan_literal | gzip_zero_padding | lfs_pointer | mixed_endings) follow+=("$(try "$program" audit "$out/d" --deep all)") ;;
      misspelt_options) follow+=("$(try "$program" prepare local "$folder" --out "$out/i" --quiet --id-field uid)") ;;
    esac
  done
  row "$name" "${results[@]}"
  [ ${#follow[@]} -eq 0 ] || row "$name, then" "${follow[@]}"
}
programs=("$@")

finished_case() { # prepare again with other inputs, other bytes of the same size, another option
  local folder=$1 program what results
  for what in "same" "another folder" "a file added" "bytes changed" "another --id-field"; do
    results=()
    for program in "${programs[@]}"; do
      local place; place=$(mktemp -d "$work/fin.XXXX"); cp -r "$folder/one" "$place/one"; chmod -R u+w "$place"
      "$program" prepare local "$place/one" --out "$place/d" --quiet >/dev/null 2>&1 || true
      local input="$place/one" more=()
      case "$what" in
        "another folder") input="$folder/two" ;;
        "a file added") cp "$folder/one_later_3.jsonl" "$place/one/3.jsonl" ;;
        "bytes changed") sed -i 's/.\("}\)/Z\1/' "$place/one/1.jsonl" ;;
        "another --id-field") more=(--id-field text) ;;
      esac
      results+=("$(try "$program" prepare local "$input" --out "$place/d" --quiet "${more[@]}")")
    done
    row "$(basename "$folder"): $what" "${results[@]}"
  done
}

own_output_case() {
  local folder=$1 results=() program
  for program in "${programs[@]}"; do
    local place; place=$(mktemp -d "$work/own.XXXX"); cp -r "$folder/." "$place/"; chmod -R u+w "$place"
    (cd "$place" && "$program" prepare local . --out out --quiet >/dev/null 2>&1) || true
    results+=("$(cd "$place" && try "$program" prepare local . --out other --json)")
  done
  row own_output "${results[@]}"
}

launder_case() {
  local results=() program
  command -v python3 >/dev/null || return 0
  for program in "${programs[@]}"; do
    local place; place=$(mktemp -d "$work/lau.XXXX"); mkdir "$place/in"
    for n in 1 2; do seq -s ' ' "$n" 3000 >"$place/in/$n.txt"; done
    for n in 1 2; do "$program" prepare local "$place/in" --out "$place/d" --task "$n/2" --quiet >/dev/null 2>&1 || true; done
    python3 "$1" "$place/d" || true
    results+=("$(try "$program" merge --out "$place/d")")
  done
  row "hostile: merge of an altered part" "${results[@]}"
}

split_case() {
  local results program name
  mkdir -p "$work/plain"; echo words >"$work/plain/a.txt"
  for name in ../outside "" .hidden parts; do
    results=()
    for program in "${programs[@]}"; do
      local out; out=$(mktemp -d "$work/spl.XXXX")
      results+=("$(try "$program" prepare local "$work/plain" --out "$out/d" --quiet --split "$name")")
    done
    row "--split \`$name\`" "${results[@]}"
  done
}

for path in "$cases"/*; do
  name=$(basename "$path")
  case "$name" in
    requests | mirror.py) ;; # for a server, and for a Hub: see the tests of those
    finished_other_folder) finished_case "$path" ;;
    own_output) own_output_case "$path" ;;
    hostile)
      for inner in "$path"/*; do
        case "$inner" in
          *.jsonl)
            mkdir -p "$work/h"; rm -f "$work/h"/*; cp "$inner" "$work/h/"
            prepare_case terminal_escapes "$work/h" | sed 's/^| terminal_escapes/| hostile: terminal escapes/' ;;
          *.py) launder_case "$inner" ;;
          *.safetensors) ;; # for xlstm-eval
          *)
            results=(); for program in "${programs[@]}"; do results+=("$(try "$program" audit "$inner")"); done
            row "hostile: audit $(basename "$inner")" "${results[@]}" ;;
        esac
      done ;;
    *.tar)
      mkdir -p "$work/tar.$name"; tar xf "$path" -C "$work/tar.$name"
      for inner in "$work/tar.$name"/*/; do
        [ "$(basename "$inner")" = elsewhere ] || prepare_case "$(basename "$inner")" "${inner%/}"
        if [ "$(basename "$inner")" = links ]; then
          rm -f "$inner/loop" "$inner/broken.txt"; prepare_case "links without loop and broken" "${inner%/}"
        fi
      done ;;
    *) if [ -d "$path" ]; then prepare_case "$name" "$path"; fi ;;
  esac
done
split_case
